"""A loop whose clock is the test's, and transports whose other side is: nothing here touches a socket."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

_HIGH_WATER_BYTES = 64 * 1024
_LOW_WATER_BYTES = 16 * 1024
_TURNS_MAX = 2_000


class Hang(AssertionError):
    """What was begun does not come to rest."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still unless `now` is moved. `connect` answers every `create_connection`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.connect: Callable[[Callable[[], asyncio.Protocol]], asyncio.Future[Any]] | None = None

    def time(self) -> float:
        return self.now

    async def create_connection(self, protocol_factory: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override] # no sockets
        assert self.connect is not None
        return await self.connect(protocol_factory)

    async def settle(self) -> None:
        """Run whatever is ready, and what that makes ready. Raises Hang."""
        ready = cast("deque[object]", self._ready)  # type: ignore[attr-defined] # asyncio's own queue
        await asyncio.sleep(0)
        for _ in range(_TURNS_MAX):
            if not ready:
                return
            await asyncio.sleep(0)
        raise Hang(f"still busy after {_TURNS_MAX} turns")

    def forget(self) -> None:
        """Drop every timer."""
        cast("list[object]", self._scheduled).clear()  # type: ignore[attr-defined] # asyncio's own


class _Socket:
    def setsockopt(self, *_: object) -> None: ...
    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 2


_SOCKET = _Socket()


class Wire(asyncio.Transport):
    """A transport that behaves as uvloop's: what a program may not do to one raises."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = loop
        self.written = bytearray()
        self.pending = 0
        self.stalled = False
        self.closing = self.closed = self.aborted = self.ended = False
        self._reading = True
        self._congested = False
        self._deliver: Callable[[bytes], None]
        self.first = protocol  # whose connection it is, whoever reads for it
        self._inbox: deque[bytes | None] = deque()
        self.set_protocol(protocol)
        protocol.connection_made(self)

    # What the gateway may do.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _SOCKET if name == "socket" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast("asyncio.Protocol", protocol)
        if isinstance(protocol, asyncio.BufferedProtocol):
            self._deliver = self._deliver_into
        else:
            self._deliver = self._protocol.data_received

    def _deliver_into(self, data: bytes) -> None:
        # As a transport reads into its protocol's own memory, until that is another.
        while data:
            if self.closing or not self._reading:
                self._inbox.appendleft(data)
                return
            protocol: asyncio.BaseProtocol = self._protocol
            if not isinstance(protocol, asyncio.BufferedProtocol):
                self._deliver(data)
                return
            room = memoryview(protocol.get_buffer(-1))
            size = min(len(room), len(data))
            room[:size] = data[:size]
            protocol.buffer_updated(size)
            data = data[size:]

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self._reading

    def write(self, data: Any) -> None:
        self._alive()
        if self.ended:
            raise RuntimeError("write after write_eof")
        if self.closing or not data:
            return
        self.written += data
        if self.stalled:
            self.pending += len(data)
            if self.pending > _HIGH_WATER_BYTES and not self._congested:
                self._congested = True
                self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self.pending

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._alive()
        self.ended = True

    def pause_reading(self) -> None:
        self._alive()
        self._reading = False

    def resume_reading(self) -> None:
        self._alive()
        if not self._reading and not self.closing:
            self._reading = True
            self._loop.call_soon(self._drain_inbox)

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.pending:
                self._loop.call_soon(self._lost, None)

    def abort(self) -> None:
        if not self.closed:
            self.closing = self.aborted = True
            self.pending = 0
            self._loop.call_soon(self._lost, None)

    def _alive(self) -> None:
        if self.closed:
            raise RuntimeError("the handler is closed")

    def _lost(self, error: Exception | None) -> None:
        if not self.closed:
            self.closed = self.closing = True
            self._protocol.connection_lost(error)

    # What the other side may do.

    def feed(self, data: bytes | None) -> None:
        """Bytes arrive, or (None) the other side's end."""
        if self.closing:
            return
        self._inbox.append(data)
        self._drain_inbox()

    def _drain_inbox(self) -> None:
        while self._inbox and self._reading and not self.closing:
            data = self._inbox.popleft()
            if data is not None:
                self._deliver(data)
            else:
                self.aborted = True  # whoever has closed may get less than all
                if not self._protocol.eof_received():
                    self.close()

    def reset(self) -> None:
        """The other side is gone at once."""
        if not self.closed:
            self.aborted = True
            self._lost(ConnectionResetError())

    def take(self, size: int | None = None) -> None:
        """The other side reads: so much, or all from now on."""
        if size is None:
            self.stalled = False
        self.pending -= self.pending if size is None else min(size, self.pending)
        if self._congested and self.pending <= _LOW_WATER_BYTES:
            self._congested = False
            if not self.closed:
                self._protocol.resume_writing()
        if self.closing and not self.pending and not self.closed:
            self._loop.call_soon(self._lost, None)
