"""GatewayProtocol: uvicorn's HTTP/1 protocol with the inference paths served in its own callbacks.

Every other path goes to the ASGI application as uvicorn would do it. Requests of one connection are answered
in order, whichever way each is served.
"""

import asyncio
import time
import urllib.parse
from collections import deque
from typing import Any, cast

import httptools
from cortex_shared.logs import get_logger
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from cortex_gateway import errors
from cortex_gateway.errors import ApiError, invalid_request
from cortex_gateway.exchange import Exchange
from cortex_gateway.gateway import Gateway
from cortex_gateway.incoming import Incoming, check_head, head_too_large, hot_path
from cortex_gateway.wire import HeaderList, find, shown_id, status_line

_log = get_logger("protocol")

_PIPELINE_MAX = 8
_DISCARD_MAX = 64 * 1024
_LINGER_SECONDS = 2.0
_STREAM_HEADERS = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)


class GatewayProtocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(
        self,
        gateway: Gateway,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._gateway = gateway
        self._incoming: Incoming = cast("Incoming", None)
        self._queue: deque[Incoming] = deque()
        self._current: Incoming | None = None
        self._exchange: Exchange | None = None
        # Closing: nothing more is read or answered. Deaf: nothing more is read, what was read is answered.
        self._closing = False
        self._deaf = False
        self._close_after = False
        self._broken: ApiError | None = None
        self._congested = False
        self._fed = 0
        self._begins = 0
        self._deadline = 0.0
        self._began: float | None = None

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._gateway.stats.connections += 1
        self._deadline = self._gateway.time() + self._gateway.settings.intake.keep_alive_seconds
        self._gateway.sweeper.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        gateway = self._gateway
        gateway.stats.connections -= 1
        gateway.sweeper.remove(self)
        self._closing = True
        self._queue.clear()
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
        before, self._begins = self._incoming, 0
        left: bytes | None = data
        while left is not None:
            left = self._feed(left)
        incoming = self._incoming
        if self._closing or self._deaf or incoming.complete:
            self._fed = 0
            self._began = None
            return
        # Of a piece that held other requests an unknown part is this one's; pieces are 256 KiB at most.
        if incoming is before:
            self._fed += len(data)
        else:
            self._fed = len(data) if self._alone(before) else 0
        if not incoming.head_done and self._fed > self._gateway.settings.intake.head_max_bytes:
            self._fail(head_too_large())
            return
        now = self._gateway.time()
        if self._began is None:
            self._began = now
        self._set_intake_deadline(incoming, now)

    def _alone(self, before: Incoming | None) -> bool:
        return self._begins == 1 and (before is None or before.complete)

    def _feed(self, data: bytes) -> bytes | None:
        # What is to be fed next, if anything.
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade(data[cast("int", upgrade.args[0]) :])
        except httptools.HttpParserCallbackError as error:
            _log.error("protocol.bug", error=repr(error.__context__ or error))
            self._fail(ApiError(500, "The gateway failed.", "server_error", "internal_error"))
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
        head = [b"%b %b HTTP/1.1\r\n" % (incoming.method, incoming.url)]
        for name, value in incoming.headers:
            if name == b"connection":
                value = b"close" if b"close" in value.lower() else b"keep-alive"
            if name not in (b"upgrade", b"http2-settings"):
                head.append(b"%b: %b\r\n" % (name, value))
        parser = self.parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"".join((*head, b"\r\n", rest))

    def pause_writing(self) -> None:
        self._congested = True
        super().pause_writing()
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._congested = False
        super().resume_writing()
        if self._exchange is not None:
            self._exchange.resume()

    def shutdown(self) -> None:
        """uvicorn: finish what is open, then close."""
        self._close_after = True
        if self._current is None and not self._queue:
            self._closing = True
            self.transport.close()
        elif self._exchange is None:
            self.cycle.keep_alive = False

    def tick(self, now: float) -> None:
        """Time limits of the connection: slow heads and bodies, idleness, a client that takes nothing."""
        if self._closing:
            if now >= self._deadline:
                self.transport.abort()
            return
        if self._began is not None and self._current is None:
            if now >= self._deadline:
                self._fail(invalid_request("The request did not arrive in time.", status=408))
        elif self._current is None and now >= self._deadline:
            if self.transport.get_write_buffer_size():
                self.transport.abort()
            else:
                self._closing = True
                self.transport.close()

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        self._incoming = Incoming()
        self._begins += 1

    def on_url(self, url: bytes) -> None:
        self._incoming.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        incoming = self._incoming
        if not incoming.head_done:  # else a trailer, which must not pass for a header
            incoming.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._closing or self._deaf:
            return
        incoming = self._incoming
        parser = self.parser
        incoming.head_done = True
        incoming.method = parser.get_method()
        incoming.http10 = parser.get_http_version() != "1.1"
        incoming.keep_alive = parser.should_keep_alive() and not incoming.http10
        if parser.should_upgrade() and incoming.method != b"CONNECT":
            incoming.offers = True
            return
        problem = check_head(incoming, self._gateway.settings.intake.head_max_bytes)
        if problem is not None:
            self._fail(problem)
            return
        if incoming.method == b"POST":
            incoming.hot = hot_path(incoming.url)
        if incoming.hot is None:
            if self._current is None and not self._queue:
                self._run_app(incoming)
            return
        found = self._gateway.keys.find(
            incoming.headers, self.client[0] if self.client else None, time.time()
        )
        if isinstance(found, ApiError):
            incoming.refusal = found
        else:
            incoming.key = found
        length = find(incoming.headers, b"content-length")
        if length is not None and int(length) > self._gateway.settings.intake.body_max_bytes:
            incoming.refusal = incoming.refusal or self._body_too_large()
        if incoming.refusal is not None and (
            incoming.expects or (length is not None and int(length) > _DISCARD_MAX)
        ):
            self._refuse_early(incoming)
        elif incoming.expects and self._current is None and not self._queue:
            self._continue(incoming)

    def on_body(self, body: bytes) -> None:
        if self._closing or self._deaf:
            return
        incoming = self._incoming
        if incoming is self._current and incoming.hot is None:
            super().on_body(body)
            return
        incoming.size += len(body)
        if incoming.refusal is not None:
            if incoming.size > _DISCARD_MAX:
                self._refuse_early(incoming)
            return
        if incoming.size > self._gateway.settings.intake.body_max_bytes:
            incoming.refusal = self._body_too_large()
            incoming.parts.clear()
            self._refuse_early(incoming)
            return
        incoming.parts.append(body)

    def on_message_complete(self) -> None:
        incoming = self._incoming
        if self._closing or self._deaf or incoming.offers:
            return
        incoming.complete = True
        if incoming is self._current:
            super().on_message_complete()
        elif self._current is None and not self._queue:
            self._run(incoming)
        else:
            self._queue.append(incoming)
            if len(self._queue) >= _PIPELINE_MAX:
                self.flow.pause_reading()

    # One request after the other.

    def _run(self, incoming: Incoming) -> None:
        hot = incoming.hot
        if hot is None:
            self._run_app(incoming)
            return
        self._current = incoming
        if incoming.refusal is not None or incoming.key is None:
            refusal = incoming.refusal or errors.no_key()
            self._gateway.stats.refuse(refusal.status)
            self._answer_error(refusal, incoming)
            self.finished()
            return
        parts = incoming.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        exchange = self._exchange = Exchange(
            self._gateway, self, hot, incoming.key, incoming.headers, body, chunked=not incoming.http10
        )
        exchange.start()

    def _run_app(self, incoming: Incoming) -> None:
        # As uvicorn's own on_headers_complete does it.
        self._current = incoming
        url = httptools.parse_url(incoming.url)
        raw_path = url.path or b"/"
        path = urllib.parse.unquote(raw_path.decode("latin-1"))
        keep_alive = incoming.keep_alive and not self._close_after and not self._gateway.draining
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.0" if incoming.http10 else "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "method": incoming.method.decode("ascii"),
            "root_path": self.root_path,
            "path": self.root_path + path,
            "raw_path": self.root_path.encode("ascii") + raw_path,
            "query_string": url.query or b"",
            "headers": incoming.headers,
            "state": self.app_state.copy(),
        }
        self.cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=incoming.expects,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        self.cycle.body += b"".join(incoming.parts)
        self.cycle.more_body = not incoming.complete
        self._start_asgi_task(self.cycle, cast("ASGI3Application", self.app))

    def on_response_complete(self) -> None:
        """uvicorn: the application has answered."""
        current = self._current
        if current is not None and not current.complete:
            # It answered before the body was there, whose rest would be taken for the next request.
            self._current = None
            self.flow.resume_reading()
            self._linger()
            return
        self.finished()

    def finished(self) -> None:
        """The current answer is written: the next request, or wait for one."""
        current, self._current, self._exchange = self._current, None, None
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        if self._closing or self.transport.is_closing():
            return
        if self._close_after or current is None or not current.keep_alive or self._gateway.draining:
            self._closing = True
            self._deadline = self._gateway.time() + self._gateway.settings.intake.client_stall_seconds
            self.transport.close()
            return
        self._deadline = self._gateway.time() + self._gateway.settings.intake.keep_alive_seconds
        if self._queue or self._broken is not None or self._incoming is not current:
            self.loop.call_soon(self._next)

    def _next(self) -> None:
        # In a turn of its own: a long pipeline of refusals must not become a deep recursion.
        if self._closing or self._current is not None:
            return
        if self._queue:
            incoming = self._queue.popleft()
            if len(self._queue) < _PIPELINE_MAX:
                self.flow.resume_reading()
            self._run(incoming)
            return
        if self._broken is not None:
            self._fail(self._broken)
            return
        incoming = self._incoming
        if incoming.head_done and not incoming.complete:
            if incoming.hot is None:
                self._run_app(incoming)
            elif incoming.refusal is not None and incoming.expects:
                self._refuse_early(incoming)
            elif incoming.expects:
                self._continue(incoming)

    def _continue(self, incoming: Incoming) -> None:
        if not incoming.parts:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        incoming.expects = False

    # Checks and refusals.

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

    def _refuse_early(self, incoming: Incoming) -> None:
        # Before the body is there: answer, then close, since the rest of it cannot be told from a request.
        assert incoming.refusal is not None
        self._gateway.stats.refuse(incoming.refusal.status)
        self._fail(incoming.refusal)

    def _fail(self, error: ApiError) -> None:
        """Answer with an error, in turn, and close."""
        if self._current is not None or self._queue:
            self._broken = error
            self._deaf = True
            return
        self._close_after = True
        self._answer_error(error, self._incoming)
        self._linger()

    def _linger(self) -> None:
        # Closing with unread data pending would reset the connection, and the answer with it.
        self._closing = True
        self._deadline = self._gateway.time() + _LINGER_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _answer_error(self, error: ApiError, incoming: Incoming | None) -> None:
        own = self._gateway.next_request_id().encode()
        shown = shown_id(incoming.headers, own) if incoming is not None else own
        self.answer(error.status, error.headers(), error.body(), shown)

    # What an exchange writes.

    @property
    def congested(self) -> bool:
        """Whether the client is slower than what was written to it."""
        return self._congested

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        self.transport.write(data)

    def answer(self, status: int, headers: HeaderList, body: bytes, shown: bytes) -> None:
        """Write a whole answer in JSON."""
        head = [
            status_line(status),
            self._gateway.default_head(self.server_state.default_headers),
            b"content-type: application/json\r\nx-request-id: %b\r\ncontent-length: %d\r\n"
            % (shown, len(body)),
        ]
        for header in headers:
            head.append(b"%b: %b\r\n" % header)
        self._end_head(head)
        head.append(body)
        self.transport.write(b"".join(head))

    def begin_stream(self, shown: bytes) -> bytes:
        """The head of an answer with status 200 that is an event stream."""
        current = self._current
        head = [
            status_line(200),
            self._gateway.default_head(self.server_state.default_headers),
            _STREAM_HEADERS,
            b"x-request-id: %b\r\n" % shown,
        ]
        if current is not None and current.http10:
            current.keep_alive = False
        else:
            head.append(b"transfer-encoding: chunked\r\n")
        self._end_head(head)
        return b"".join(head)

    def _end_head(self, head: list[bytes]) -> None:
        current = self._current
        if self._close_after or self._gateway.draining or current is None or not current.keep_alive:
            self._close_after = True
            head.append(b"connection: close\r\n")
        head.append(b"\r\n")

    def cut(self) -> None:
        """Close at once: the client takes nothing."""
        self._closing = True
        self.transport.abort()
