"""Connections to engines: one protocol each, callbacks only, answers handed on in the engine's own bytes."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import anyio
from cortex_shared.errors import InvalidInput
from cortex_shared.logs import get_logger

from cortex_gateway.chunks import ChunkReader
from cortex_gateway.endpoint import Endpoint
from cortex_gateway.settings import UpstreamSettings
from cortex_gateway.sweep import Sweeper

_log = get_logger("upstream")

_HEAD_MAX = 64 * 1024
_JOIN_MAX = 64 * 1024
_NO_BODY = (204, 304)

type Headers = dict[bytes, bytes]


class Answerer(Protocol):
    """Who asked: is told of the answer, in order, until `ended` or `on_broken`."""

    __slots__ = ()

    def on_head(self, status: int, headers: Headers) -> None:
        """Status and headers (lower case; of doubles the last)."""
        ...

    def on_block(self, block: bytes, whole: bool, ended: bool) -> None:
        """Complete chunks as they came; `whole` if each ends with a blank line."""
        ...

    def on_body(self, data: bytes, ended: bool) -> None:
        """A piece of a body that is not chunked."""
        ...

    def on_broken(self, answered: bool) -> None:
        """The connection died, or sent nonsense; `answered` if any byte had come."""
        ...

    def on_bug(self) -> None:
        """One of the above raised; the connection is closed."""
        ...


def parse_head(head: bytes) -> tuple[int, Headers, bool]:
    """(status, headers, whether the connection may be used again) of an answer's head. Raises ValueError."""
    lines = head.split(b"\r\n")
    first = lines[0]
    if first[:7] != b"HTTP/1." or first[8:9] != b" ":
        raise ValueError("not an HTTP/1 answer")
    status = int(first[9:12])
    headers: Headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or name[0] in b" \t":
            raise ValueError("a header is broken")
        headers[name.lower()] = value.strip()
    stated = headers.get(b"connection")
    if stated is None:
        return status, headers, first[7:8] == b"1"
    stated = stated.lower()
    return status, headers, b"close" not in stated and (first[7:8] == b"1" or b"keep-alive" in stated)


# An engine may think for minutes, but its host acknowledges within seconds: a host that does not is gone
# (cable, power, partition), and without these a request on it would wait for its first-token limit.
_GONE_MS = 5_000
_NOTICE_SILENT_HOSTS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_MS),
)


class Connection(asyncio.Protocol):
    """One connection to an engine, used by one request after the other."""

    def __init__(self, endpoint: Endpoint, pool: "Pool") -> None:
        self._endpoint = endpoint
        self._pool = pool
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._owner: Answerer | None = None
        self._read: Callable[[bytes], None] = self._read_idle
        self._head = bytearray()
        self._left = 0
        self._chunks: ChunkReader | None = None
        self._keep = False
        self._until_close = False
        self._paused = False
        self.closed = False
        self.reused = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        for level, option, value in _NOTICE_SILENT_HOSTS:
            transport.get_extra_info("socket").setsockopt(level, option, value)

    def send(self, owner: Answerer, head: bytes, body: bytes) -> None:
        """Send a request; `owner` hears of its answer."""
        self._owner = owner
        self._read = self._read_head
        if len(body) <= _JOIN_MAX:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def abort(self) -> None:
        """Close at once, whatever is under way; nobody is told."""
        self._owner = None
        self._read = self._read_idle
        self.closed = True
        self._transport.abort()

    def close(self) -> None:
        """Close an idle connection."""
        self.closed = True
        self._transport.close()

    def pause(self) -> None:
        """Read no further for now: whoever takes the answer is slow."""
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        owner = self._owner
        try:
            self._read(data)
        except Exception as error:  # noqa: BLE001 (a bug must end this one answer, not leave its client waiting)
            self._bug(owner, error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        owner, self._owner = self._owner, None
        if owner is None:
            if self in self._endpoint.idle:
                self._endpoint.idle.remove(self)
            return
        try:
            if self._until_close and exc is None:
                owner.on_body(b"", True)
            else:
                owner.on_broken(bool(self._head) or self._read != self._read_head)
        except Exception as error:  # noqa: BLE001 (as above)
            self._bug(owner, error)

    def fail(self) -> None:
        """A bug in who uses it: close it and tell the owner, if there is one."""
        owner = self._owner
        self.abort()
        if owner is not None:
            owner.on_bug()

    def _bug(self, owner: Answerer | None, error: Exception) -> None:
        _log.error("upstream.bug", error=repr(error))
        # At an answer's end the connection may be another's already, which goes on.
        if self._owner is None or self._owner is owner:
            self.abort()
        if owner is not None:
            owner.on_bug()

    def _read_idle(self, data: bytes) -> None:
        # An engine that speaks unasked cannot be trusted with the next request.
        self.abort()

    def _read_head(self, data: bytes) -> None:
        if self._head:
            self._head += data
            data = bytes(self._head)
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _HEAD_MAX:
                self._break()
            elif not self._head:
                self._head += data
            return
        self._head.clear()
        try:
            status, headers, self._keep = parse_head(data[:end])
            self._frame(status, headers)
        except ValueError:
            self._break()
            return
        rest = data[end + 4 :]
        if 100 <= status < 200:
            if rest:
                self._read_head(rest)
            return
        owner = self._owner
        assert owner is not None
        owner.on_head(status, headers)
        if self._owner is not owner:
            return
        if rest or self._left == 0:
            self._read(rest)

    def _frame(self, status: int, headers: Headers) -> None:
        coding = headers.get(b"transfer-encoding")
        length = headers.get(b"content-length")
        self._left = -1
        if 100 <= status < 200:
            return
        if status in _NO_BODY:
            self._left, self._read = 0, self._read_length
        elif coding is not None:
            if coding.lower() != b"chunked" or length is not None:
                raise ValueError("an unknown framing")
            self._chunks = ChunkReader(self._pool.settings.event_max_bytes)
            self._read = self._read_chunks
        elif length is not None:
            if not length.isdigit():
                raise ValueError("a broken length")
            self._left, self._read = int(length), self._read_length
        else:
            self._keep, self._until_close = False, True
            self._read = self._read_to_end

    def _read_chunks(self, data: bytes) -> None:
        chunks = self._chunks
        assert chunks is not None
        try:
            block, whole = chunks.feed(data)
        except InvalidInput:
            self._break()
            return
        owner = self._owner
        assert owner is not None
        if chunks.ended:
            self._done(excess=chunks.excess)
            owner.on_block(block, whole, True)
        elif block:
            owner.on_block(block, whole, False)

    def _read_length(self, data: bytes) -> None:
        owner = self._owner
        assert owner is not None
        left = self._left - len(data)
        if left > 0:
            self._left = left
            owner.on_body(data, False)
            return
        if left < 0:
            data = data[: self._left]
        self._done(excess=left < 0)
        owner.on_body(data, True)

    def _read_to_end(self, data: bytes) -> None:
        if data and self._owner is not None:
            self._owner.on_body(data, False)

    def _done(self, *, excess: bool) -> None:
        self._owner = None
        self._read = self._read_idle
        self._chunks = None
        self.resume()
        # An engine that answers before it has read the whole request leaves the rest of it in the pipe.
        if not self._keep or excess or self.closed or self._transport.get_write_buffer_size():
            self.close()
        else:
            self._pool.put(self._endpoint, self)

    def _break(self) -> None:
        owner = self._owner
        self.abort()
        if owner is not None:
            owner.on_broken(True)


class Dial:
    """A connection under way. `cancel` makes its result go to the pool instead of to who asked."""

    __slots__ = ("wanted",)

    def __init__(self) -> None:
        self.wanted = True

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.wanted = False


class Pool:
    """Idle connections per endpoint (last in, first out), and the tasks that make new ones."""

    def __init__(self, settings: UpstreamSettings, loop: asyncio.AbstractEventLoop, sweeper: Sweeper) -> None:
        self.settings = settings
        self._loop = loop
        self._sweeper = sweeper
        # asyncio's, since anyio's cannot be given a task from a transport's callback.
        self._group: asyncio.TaskGroup | None = None
        self._endpoints: set[Endpoint] = set()

    async def run(self) -> None:
        """Parent of the connecting tasks, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await anyio.sleep_forever()
            finally:
                self._group = None

    def take(self, endpoint: Endpoint) -> Connection | None:
        """An idle connection, or None."""
        if not endpoint.idle:
            return None
        connection = endpoint.take_idle(self._loop.time() - self.settings.idle_seconds)
        if connection is not None:
            connection.reused = True
        return connection

    def put(self, endpoint: Endpoint, connection: Connection) -> None:
        """Keep a connection for the next request."""
        if endpoint.removed or connection.closed or len(endpoint.idle) >= self.settings.idle_max:
            connection.close()
            return
        connection.idle_since = self._loop.time()
        endpoint.idle.append(connection)
        if endpoint not in self._endpoints:
            self._endpoints.add(endpoint)
            self._sweeper.add(self)

    def forget(self, endpoint: Endpoint) -> None:
        """The endpoint left the routes: its idle connections are closed, and no more are kept."""
        endpoint.removed = True
        endpoint.close_idle(float("inf"))

    def tick(self, now: float) -> None:
        """Close what has been idle for too long."""
        before = now - self.settings.idle_seconds
        for endpoint in list(self._endpoints):
            endpoint.close_idle(before)
            if not endpoint.idle:
                self._endpoints.discard(endpoint)
        if not self._endpoints:
            self._sweeper.remove(self)

    def dial(self, endpoint: Endpoint, seconds: float, done: Callable[[Connection | None], None]) -> Dial:
        """Connect anew, at most for `seconds`; `done` gets the connection, or None when there is none."""
        dial = Dial()
        if self._group is None:
            self._loop.call_soon(self._refused, done, dial)
        else:
            self._group.create_task(self._connect(endpoint, seconds, done, dial))
        return dial

    @staticmethod
    def _refused(done: Callable[[Connection | None], None], dial: Dial) -> None:
        if dial.wanted:
            done(None)

    async def _connect(
        self, endpoint: Endpoint, seconds: float, done: Callable[[Connection | None], None], dial: Dial
    ) -> None:
        connection: Connection | None = None
        with anyio.move_on_after(seconds):
            try:
                _, connection = await self._loop.create_connection(
                    partial(Connection, endpoint, self), endpoint.host, endpoint.port, ssl=endpoint.tls
                )
            except (OSError, ValueError):
                connection = None
        if dial.wanted:
            try:
                done(connection)
            except Exception as error:  # noqa: BLE001 (raised here, it would end all of the gateway)
                _log.error("upstream.bug", error=repr(error))
                if connection is not None:
                    connection.fail()
        elif connection is not None:
            self.put(endpoint, connection)
