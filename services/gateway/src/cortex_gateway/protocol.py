"""GatewayProtocol: uvicorn's HTTP/1 protocol with the inference paths served in its own callbacks.

Here HTTP is read, and what no client may do is refused; every other path than those of inference goes to the
ASGI application as uvicorn would do it.
"""

import asyncio
import time
from time import perf_counter
from typing import cast

import httptools
from cortex_shared.logs import get_logger

from cortex_gateway import errors
from cortex_gateway.errors import ApiError, invalid_request
from cortex_gateway.gist import SMALL_BYTES
from cortex_gateway.heads import HEAD_MAX_BYTES, Known
from cortex_gateway.incoming import Head, Incoming, around_too_large, check_head, head_too_large, hot_path
from cortex_gateway.keys import Key
from cortex_gateway.large_reads import LARGE_BYTES, LargeReads
from cortex_gateway.pipeline import DISCARD_MAX, Pipeline
from cortex_gateway.wire import find

_log = get_logger("protocol")


class GatewayProtocol(Pipeline):
    """One client connection."""

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._transport = transport
        self._address = self.client[0] if self.client else None
        self._gateway.stats.connections += 1
        self._deadline = self._gateway.time() + self._gateway.settings.intake.keep_alive_seconds
        self._gateway.sweeper.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        gateway = self._gateway
        gateway.stats.connections -= 1
        gateway.sweeper.remove(self)
        self._closing = True
        self._queue.clear()
        self._current = None
        self._incoming.parts = []  # what is left of uvicorn's protocol waits for the garbage collector
        self._large_reads = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_left()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        # Nobody reads answers after having closed: the engine is let go at once.
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._closing = True
            exchange.client_left()

    def data_received(self, data: bytes) -> None:
        if self._closing or self._deaf:
            return
        self._gateway.received = perf_counter()
        if self._left:
            self._take_rest(data)
            return
        at_rest = self._at_rest()
        if at_rest:
            known = self._gateway.heads.find(data, self._last_head)
            if known is not None and self._take_known(known, data):
                return
        before, self._begins = self._incoming, 0
        left: bytes | None = data
        while left is not None:
            left = self._feed(left)
        incoming = self._incoming
        if at_rest and self._alone(before) and incoming.may_come_again and data.startswith(b"POST "):
            self._gateway.heads.keep(data, Head(incoming), with_length=True)
        if self._closing or self._deaf or incoming.complete:
            self._fed = 0
            self._began = None
            return
        # Of a piece that held other requests an unknown part is this one's; pieces are 264 KiB at most.
        if incoming is before:
            self._fed += len(data)
        else:
            self._fed = len(data) if self._alone(before) else 0
            self._had = 0
        if incoming.size != self._had:
            self._had, self._fed = incoming.size, 0
        elif self._fed > self._gateway.settings.intake.head_max_bytes:
            self._fail(around_too_large() if incoming.head_done else head_too_large())
            return
        now = self._gateway.time()
        if self._began is None:
            self._began = now
        self._set_intake_deadline(incoming, now)

    def _at_rest(self) -> bool:
        # Between two requests, with nothing under way.
        return (
            self._current is None
            and self._incoming.complete
            and self._began is None
            and not self._queue
            and not self._congested
            and self._broken is None
        )

    def _take_known(self, known: tuple[Known[Head], int, int], data: bytes) -> bool:
        # A request whose head was read before; False: it is for the parser after all.
        size, start = len(data), known[1]
        incoming = self._known(known, size)
        if incoming is None:
            return False
        if size > start:
            # The piece that came with the head is left where it is if that is worth while.
            if incoming.size < SMALL_BYTES:
                incoming.parts.append(data[start:])
            else:
                incoming.parts.append(data)
                incoming.start = start
        if incoming.size >= LARGE_BYTES:
            self._read_large()
        self._took(incoming, incoming.size - (size - start))
        return True

    def _known(self, known: tuple[Known[Head], int, int], size: int) -> Incoming | None:
        # The request of a head, of which there are `size` bytes with its body's beginning.
        self._last_head, start, length = known
        head = known[0].value
        gateway = self._gateway
        if size - start > length or length > gateway.body_max_bytes:
            return None
        key = gateway.keys.check(head.digest, self._address, time.time())
        if not isinstance(key, Key):
            return None
        incoming = self._incoming = Incoming()
        incoming.take(head)
        incoming.key = key
        incoming.size = length
        return incoming

    def _took(self, incoming: Incoming, left: int) -> None:
        # What was read of a body is in its parts, and so much is still to come.
        if left:
            now = self._gateway.time()
            self._left = left
            if self._began is None:
                self._began = now
            self._set_intake_deadline(incoming, now)
            return
        self._left = 0
        self._began = None
        incoming.complete = True
        self._run(incoming)

    def _read_large(self) -> None:
        reads = self._large_reads
        if reads is None:
            reads = self._large_reads = LargeReads(self, self._transport, self._gateway.room)
        reads.begin()

    # From LargeReads.

    @property
    def left(self) -> int:
        """Bytes that are still to come of the body of a request whose head was known."""
        return self._left

    def take_large(self, piece: bytearray, size: int) -> bool:
        """A request begins with these bytes, which stay where they are; false: they are for the parser."""
        if self._closing or self._deaf or not self._at_rest():
            return False
        self._gateway.received = perf_counter()
        known = self._gateway.heads.find(bytes(memoryview(piece)[:HEAD_MAX_BYTES]), self._last_head)
        if known is None or known[2] < LARGE_BYTES:
            return False
        incoming = self._known(known, size)
        if incoming is None:
            return False
        incoming.parts.append(piece)
        incoming.start, incoming.stop = known[1], size
        self._took(incoming, incoming.size - (size - known[1]))
        return True

    def take_more(self, piece: bytearray, size: int) -> None:
        """The next `size` bytes of the body at hand are in a new piece."""
        if not (self._closing or self._deaf):
            self._gateway.received = perf_counter()
            self._incoming.parts.append(piece)
            self._incoming.stop = size
            self._took(self._incoming, self._left - size)

    def take_into(self, size: int) -> None:
        """The next `size` bytes of the body at hand are in its last piece."""
        if not (self._closing or self._deaf):
            self._gateway.received = perf_counter()
            self._incoming.stop += size
            self._took(self._incoming, self._left - size)

    def _take_rest(self, data: bytes) -> None:
        # More of the body of a request whose head was known.
        left = self._left - len(data)
        rest = data[self._left :] if left < 0 else b""
        self._incoming.add(data[: self._left] if rest else data)
        self._took(self._incoming, max(0, left))
        if rest:
            self.data_received(rest)

    def _alone(self, before: Incoming) -> bool:
        return self._begins == 1 and before.complete

    def _feed(self, data: bytes) -> bytes | None:
        # What is to be fed next, if anything.
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade(data[cast("int", upgrade.args[0]) :])
        except httptools.HttpParserCallbackError as error:
            _log.error("protocol.bug", error=repr(error.__context__ or error))
            self._fail(errors.internal_error())
        except httptools.HttpParserError as error:
            self._fail(invalid_request(f"The HTTP request is malformed: {error}."))
        return None

    def _without_upgrade(self, rest: bytes) -> bytes | None:
        # Nothing is upgraded here, as HTTP allows (Java's client offers h2c with every first request), but
        # the parser takes what follows such a head for another protocol: it gets the head again, without
        # the offer.
        if self._closing or self._deaf:
            return None
        incoming = self._incoming
        head = [b"%b %b HTTP/1.%b\r\n" % (incoming.method, incoming.url, b"0" if incoming.http10 else b"1")]
        for name, value in incoming.headers:
            if name == b"connection":
                value = b"close" if b"close" in value.lower() else b"keep-alive"
            if name not in (b"upgrade", b"http2-settings"):
                head.append(b"%b: %b\r\n" % (name, value))
        parser = self.parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"".join((*head, b"\r\n", rest))

    def tick(self, now: float) -> None:
        """Time limits of the connection: slow heads and bodies, idleness, a client that takes nothing."""
        if self._closing:
            if now >= self._deadline:
                self._deadline = now + self._gateway.settings.intake.client_stall_seconds
                if self._stalled():
                    self.transport.abort()
            return
        if self._congested:
            if now >= self._stall_deadline:
                self._stall_deadline = now + self._gateway.settings.intake.client_stall_seconds
                if self._stalled():
                    self.transport.abort()
            return
        if now < self._deadline:
            return
        if self._current is None:
            if self._began is not None:
                self._fail(invalid_request("The request did not arrive in time.", status=408))
            elif self.transport.get_write_buffer_size():
                self.transport.abort()
            else:
                self._closing = True
                self.transport.close()
        elif self._began is not None and self._current is self._incoming:
            self.transport.abort()  # the application waits for the rest of a body

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        self._incoming = Incoming()
        self._begins += 1

    def on_url(self, url: bytes) -> None:
        self._incoming.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        incoming = self._incoming
        if not incoming.head_done:
            incoming.headers.append((name.lower(), value))
        elif name.lower() == b"connection":
            # A trailer, which must not pass for a header; but the parser may have taken it for a close.
            incoming.keep_alive = False

    def on_headers_complete(self) -> None:
        if self._closing or self._deaf:
            return
        incoming = self._incoming
        parser = self.parser
        incoming.head_done = True
        incoming.method = parser.get_method()
        version = parser.get_http_version()
        incoming.http10 = version != "1.1"
        incoming.keep_alive = parser.should_keep_alive() and not incoming.http10
        if parser.should_upgrade():
            if incoming.method == b"CONNECT":
                self._fail(invalid_request("This is no proxy: there is no CONNECT."))
            else:
                incoming.offers = True
            return
        problem = check_head(incoming, self._gateway.settings.intake.head_max_bytes)
        if incoming.http10 and version != "1.0":
            problem = invalid_request("The only versions of HTTP are 1.1 and 1.0.")
        if problem is not None:
            self._fail(problem)
            return
        incoming.hot = hot_path(incoming.method, incoming.url)
        if incoming.hot is None:
            if self._current is None and not self._queue and not self._congested:
                self._begin_app(incoming)
            return
        found = self._gateway.keys.find(incoming.headers, self._address, time.time())
        if isinstance(found, Key):
            incoming.key = found
        else:
            incoming.refusal = found
        length = find(incoming.headers, b"content-length")
        if length is not None and int(length) > self._gateway.settings.intake.body_max_bytes:
            incoming.refusal = incoming.refusal or self._body_too_large()
        if incoming.refusal is not None and (
            incoming.expects or (length is not None and int(length) > DISCARD_MAX)
        ):
            self._refuse_early(incoming)
        elif incoming.expects and self._current is None and not self._queue:
            self._continue(incoming)

    def on_body(self, body: bytes) -> None:
        if self._closing or self._deaf:
            return
        incoming = self._incoming
        incoming.size += len(body)
        if incoming is self._current and incoming.hot is None:
            super().on_body(body)
            return
        if incoming.refusal is not None:
            if incoming.size > DISCARD_MAX:
                self._refuse_early(incoming)
            return
        if incoming.size > self._gateway.settings.intake.body_max_bytes:
            incoming.refusal = self._body_too_large()
            incoming.parts.clear()
            self._refuse_early(incoming)
            return
        incoming.add(body)

    def on_message_complete(self) -> None:
        incoming = self._incoming
        if self._closing or self._deaf or incoming.offers:
            return
        incoming.complete = True
        if incoming is self._current:
            super().on_message_complete()
        elif self._current is None and not self._queue and not self._congested:
            self._run(incoming)
        else:
            self._enqueue(incoming)

    def _body_too_large(self) -> ApiError:
        limit = self._gateway.settings.intake.body_max_bytes
        return invalid_request(f"The request body is larger than {limit} bytes.", status=413)

    def _set_intake_deadline(self, incoming: Incoming, now: float) -> None:
        intake = self._gateway.settings.intake
        began = self._began if self._began is not None else now
        if not incoming.head_done:
            self._deadline = began + intake.head_seconds
        else:
            self._deadline = min(now + intake.body_seconds, began + 4 * intake.body_seconds)
