"""Connections to engines: one protocol each, callbacks only, answers handed on in the engine's own bytes."""

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Final, cast

from cortex_shared.errors import InvalidInput
from cortex_shared.logs import get_logger

from cortex_gateway.chunks import ChunkReader
from cortex_gateway.endpoint import Endpoint
from cortex_gateway.heads import Known
from cortex_gateway.large_body import Buffer
from cortex_gateway.quick import QuickReading
from cortex_gateway.relay import QuickReader

if TYPE_CHECKING:
    from cortex_gateway.pool import Pool

_log = get_logger("upstream")

_HEAD_MAX: Final = 64 * 1024
_HINTS_MAX: Final = 32
_JOIN_MAX: Final = 8 * 1024
_NO_BODY = (204, 304)
# Heads of these alone are remembered; who answers them to a client needs no length.
_COMMON = (b"application/json", b"text/event-stream")

# What a connection reads next. Compiled, a number costs a tenth of what a bound method does.
_NOTHING: Final = 0
_HEAD: Final = 1
_LENGTH: Final = 2
_CHUNKS: Final = 3
_TO_END: Final = 4

type Headers = dict[bytes, bytes]


class Answerer(ABC):
    """Who asked: is told of the answer, in order, until `ended` or `on_broken`."""

    # A base, not a protocol: compiled, calls to it are calls through a table.
    __slots__ = ()

    @abstractmethod
    def on_head(self, status: int, headers: Headers) -> None:
        """Status and headers (lower case; of doubles the last)."""

    @abstractmethod
    def on_block(self, block: bytes, whole: bool, ended: bool) -> None:
        """Complete chunks as they came; `whole` if each ends with a blank line."""

    @abstractmethod
    def on_body(self, data: bytes, ended: bool) -> None:
        """A piece of a body that is not chunked."""

    @abstractmethod
    def on_broken(self, answered: bool) -> None:
        """The connection died, or sent nonsense; `answered` if any byte had come."""

    @abstractmethod
    def on_bug(self) -> None:
        """One of the above raised; the connection is closed."""


# Given twice they may say two things, and the next reader may believe the other.
_ONCE = (b"content-length", b"transfer-encoding")


def parse_head(head: bytes) -> tuple[int, Headers, bool]:
    """(status, headers, whether the connection may be used again) of an answer's head. Raises ValueError."""
    lines = head.split(b"\r\n")
    ends = len(lines) - 1
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        raise ValueError("a line ends where none may")
    first = lines[0]
    if first[:7] != b"HTTP/1." or first[7:9] not in (b"1 ", b"0 ") or first[12:13] not in (b" ", b""):
        raise ValueError("not an HTTP/1 answer")
    if not first[9:12].isdigit():
        raise ValueError("not a status")
    status = int(first[9:12])
    if status == 101 or not 100 <= status < 600:
        raise ValueError("not a status")
    headers: Headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or name[0] in b" \t" or name[-1] in b" \t":
            raise ValueError("a header is broken")
        name = name.lower()
        if name in headers and name in _ONCE:
            raise ValueError("a header is given twice")
        headers[name] = value.strip(b" \t")
    stated = headers.get(b"connection")
    if stated is None:
        return status, headers, first[7:8] == b"1"
    stated = stated.lower()
    return status, headers, b"close" not in stated and (first[7:8] == b"1" or b"keep-alive" in stated)


# An engine may think for minutes, but its host acknowledges within seconds: a host that does not is gone
# (cable, power, partition), and without these a request on it would wait for its first-token limit.
_GONE_MS: Final = 5_000
_NOTICE_SILENT_HOSTS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_MS),
)


class Connection:
    """One connection to an engine, for one request after the other. An asyncio.Protocol by its methods."""

    __slots__ = (
        "_chunks",
        "_endpoint",
        "_head",
        "_hints",
        "_keep",
        "_last_head",
        "_left",
        "_owner",
        "_paused",
        "_pool",
        "_quick",
        "_reads",
        "_transport",
        "_until_close",
        "closed",
        "idle_since",
        "reused",
    )

    def __init__(self, endpoint: Endpoint, pool: "Pool") -> None:
        self._endpoint = endpoint
        self._pool = pool
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._owner: Answerer | None = None
        self._reads: int = _NOTHING
        self._head = bytearray()
        self._last_head: Known[tuple[int, Headers, bool]] | None = None
        self._left = 0
        self._chunks: ChunkReader | None = None
        self._keep = False
        self._until_close = False
        self._hints = 0
        self._paused = False
        self._quick: QuickReading | None = None
        self.closed = False
        self.reused = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the transport."""
        self._transport = cast("asyncio.Transport", transport)
        for level, option, value in _NOTICE_SILENT_HOSTS:
            transport.get_extra_info("socket").setsockopt(level, option, value)

    def send(self, owner: Answerer, head: bytes, body: bytes) -> None:
        """Send a request; `owner` hears of its answer."""
        self._owner = owner
        self._reads = _HEAD
        if len(body) <= _JOIN_MAX:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def send_pieces(self, owner: Answerer, head: bytes, pieces: list[Buffer]) -> None:
        """Send a request whose body is in pieces."""
        self._owner = owner
        self._reads = _HEAD
        self._transport.writelines((head, *pieces))

    def abort(self) -> None:
        """Close at once, whatever is under way; nobody is told."""
        self._read_plainly()
        self._owner = None
        self._reads = _NOTHING
        self.closed = True
        self._transport.abort()

    def read_by(self, reader: QuickReader, write: Callable[[bytes], None]) -> None:
        """Let a relay read by itself what it can pass on at once, until the answer ends."""
        chunks = self._chunks
        if chunks is None or self._quick is not None:
            return
        self._quick = quick = QuickReading(self, self._transport, self._pool)
        quick.begin(reader(chunks, write, self.data_received, quick.crowd))

    def _read_plainly(self) -> None:
        quick, self._quick = self._quick, None
        if quick is not None:
            quick.end()

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

    def rested(self) -> None:
        """The moment in which nothing was read, so that more comes at once, is over."""
        if not (self._paused or self.closed or self._transport.is_closing()):
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """From the transport: the engine takes a large request slowly."""

    def resume_writing(self) -> None:
        """From the transport."""

    def eof_received(self) -> None:
        """From the transport, which is to close then."""

    def data_received(self, data: bytes) -> None:
        """From the transport."""
        owner = self._owner
        try:
            self._read(data)
        except Exception as error:  # noqa: BLE001 (a bug must end this one answer, not leave its client waiting)
            self._bug(owner, error)

    def connection_lost(self, exc: Exception | None) -> None:
        """From the transport."""
        self.closed = True
        self._read_plainly()
        owner, self._owner = self._owner, None
        if owner is None:
            if self in self._endpoint.idle:
                self._endpoint.idle.remove(self)
            return
        try:
            if self._until_close and exc is None:
                self._pool.ended = perf_counter()
                owner.on_body(b"", True)
            else:
                owner.on_broken(bool(self._head) or self._reads != _HEAD)
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

    def _read(self, data: bytes) -> None:
        reads = self._reads
        if reads == _HEAD:
            self._read_head(data)
        elif reads == _LENGTH:
            self._read_length(data)
        elif reads == _CHUNKS:
            self._read_chunks(data)
        elif reads == _TO_END:
            self._read_to_end(data)
        else:
            self.abort()  # an engine that speaks unasked cannot be trusted with the next request

    def _read_head(self, data: bytes) -> None:
        if self._head:
            self._head += data
            data = bytes(self._head)
            self._head.clear()
        else:
            known = self._pool.heads.find(data, self._last_head)
            if known is not None:
                self._last_head, start, length = known
                self._read_known(data, known[0].value, start, length)
                return
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0 or end > _HEAD_MAX:
                if len(data) > _HEAD_MAX:
                    self._break()
                else:
                    self._head += data
                return
            try:
                status, headers, self._keep = answer = parse_head(data[:end])
                if status >= 200:
                    self._frame(status, headers)
                    break
            except ValueError:
                self._break()
                return
            # A hint that the answer is still to come (100, 102, 103): passed over.
            self._hints += 1
            if self._hints > _HINTS_MAX:
                self._break()
                return
            data = data[end + 4 :]
        self._hints = 0
        if status == 200 and headers.get(b"content-type", b"").startswith(_COMMON):
            self._pool.heads.keep(data, answer, with_length=False)
        rest = data[end + 4 :]
        owner = self._owner
        assert owner is not None
        owner.on_head(status, headers)
        if self._owner is not owner:
            return
        if rest or self._left == 0:
            self._read(rest)

    def _read_known(self, data: bytes, answer: tuple[int, Headers, bool], start: int, length: int) -> None:
        owner = self._owner
        assert owner is not None
        status, headers, self._keep = answer
        if length < 0:
            self._frame(status, headers)
        else:
            self._left, self._reads = length, _LENGTH
        owner.on_head(status, headers)
        if self._owner is owner and (len(data) > start or self._left == 0):
            self._read(data[start:])

    def _frame(self, status: int, headers: Headers) -> None:
        coding = headers.get(b"transfer-encoding")
        length = headers.get(b"content-length")
        self._left = -1
        if status in _NO_BODY:
            self._left, self._reads = 0, _LENGTH
        elif coding is not None:
            if coding.lower() != b"chunked" or length is not None:
                raise ValueError("an unknown framing")
            settings = self._pool.settings
            events = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            self._chunks = ChunkReader(settings.event_max_bytes if events else settings.response_max_bytes)
            self._reads = _CHUNKS
        elif length is not None:
            if not length.isdigit():
                raise ValueError("a broken length")
            self._left, self._reads = int(length), _LENGTH
        else:
            self._keep, self._until_close = False, True
            self._reads = _TO_END

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
        self._pool.ended = perf_counter()
        self._read_plainly()
        self._owner = None
        self._reads = _NOTHING
        self._chunks = None
        self.resume()
        if self.closed:
            return
        if self._transport.get_write_buffer_size():
            # It answered before it had read the whole request, the rest of which is of no use to anybody.
            self.abort()
        elif not self._keep or excess:
            self.close()
        else:
            self._pool.put(self._endpoint, self)

    def _break(self) -> None:
        owner = self._owner
        self.abort()
        if owner is not None:
            owner.on_broken(True)
