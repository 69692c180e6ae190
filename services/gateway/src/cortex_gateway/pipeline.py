"""Pipeline: the requests of one client connection, run one after the other, and the answers written to it."""

import asyncio
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
from cortex_gateway.errors import ApiError
from cortex_gateway.exchange import Exchange
from cortex_gateway.gateway import Gateway
from cortex_gateway.incoming import Incoming
from cortex_gateway.wire import HeaderList, shown_id, status_line

_log = get_logger("pipeline")

_PIPELINE_MAX = 8
_PIPELINE_MAX_BYTES = 256 * 1024
_LINGER_SECONDS = 2.0
_STREAM_HEADERS = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)


class Pipeline(HttpToolsProtocol):
    """Answers requests in the order in which they came, whichever way each is served."""

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
        self._incoming = Incoming()
        self._incoming.complete = True
        self._queue: deque[Incoming] = deque()
        self._current: Incoming | None = None
        self._exchange: Exchange | None = None
        # Closing: nothing more is read or answered. Deaf: nothing more is read, what was read is answered.
        self._closing = False
        self._deaf = False
        self._close_after = False
        self._broken: ApiError | None = None
        self._congested = False
        self._stall_deadline = 0.0
        self._unsent = 0
        self._fed = 0
        self._begins = 0
        self._deadline = 0.0
        self._began: float | None = None

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
        exchange = self._exchange = Exchange(
            self._gateway,
            self,
            hot,
            incoming.key,
            incoming.headers,
            incoming.body(),
            chunked=not incoming.http10,
        )
        try:
            exchange.start()
        except Exception as error:  # noqa: BLE001 (a bug must end this one request, not leave its client waiting)
            _log.error("pipeline.bug", error=repr(error))
            exchange.cut(errors.internal_error())

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
        self.cycle.body += incoming.body()
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
        if not self._queue or not self._full():
            self.flow.resume_reading()
        if self._closing:
            return
        if self._close_after or current is None or not current.keep_alive or self._gateway.draining:
            self._closing = True
            self._deadline = self._gateway.time() + self._gateway.settings.intake.client_stall_seconds
            self._unsent = self.transport.get_write_buffer_size()
            self.transport.close()
            return
        self._deadline = self._gateway.time() + self._gateway.settings.intake.keep_alive_seconds
        if self._queue or self._broken is not None or self._incoming is not current:
            self.loop.call_soon(self._next)

    def _next(self) -> None:
        # In a turn of its own: a long pipeline of refusals must not become a deep recursion. And not while
        # the client leaves answers where they are, which would pile up.
        if self._closing or self._current is not None or self._congested:
            return
        if self._queue:
            incoming = self._queue.popleft()
            if not self._full():
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

    def _enqueue(self, incoming: Incoming) -> None:
        self._queue.append(incoming)
        if self._full():
            self.flow.pause_reading()

    def _full(self) -> bool:
        queue = self._queue
        return len(queue) >= _PIPELINE_MAX or sum(each.size for each in queue) > _PIPELINE_MAX_BYTES

    def _continue(self, incoming: Incoming) -> None:
        if not incoming.parts:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        incoming.expects = False

    def pause_writing(self) -> None:
        self._congested = True
        self._stall_deadline = self._gateway.time() + self._gateway.settings.intake.client_stall_seconds
        self._unsent = self.transport.get_write_buffer_size()
        super().pause_writing()
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._congested = False
        super().resume_writing()
        if self._exchange is not None:
            self._exchange.resume()
        elif self._current is None and not self._closing:
            if self._began is None:
                self._deadline = self._gateway.time() + self._gateway.settings.intake.keep_alive_seconds
            self.loop.call_soon(self._next)

    def _stalled(self) -> bool:
        # Whether the client has taken nothing since this was last looked at; a slow one takes a little.
        left, before = self.transport.get_write_buffer_size(), self._unsent
        self._unsent = left
        return not 0 < left < before

    def shutdown(self) -> None:
        """uvicorn: finish what is open, then close."""
        self._close_after = True
        if self._current is None and not self._queue:
            if self._began is None:  # else a request is coming in, and is answered
                self._closing = True
                self.transport.close()
        elif self._current is not None and self._exchange is None:
            self.cycle.keep_alive = False

    # Refusals.

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
