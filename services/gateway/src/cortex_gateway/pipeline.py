"""Pipeline: the requests of one client connection, run one after the other, and the answers written to it."""

import asyncio
import urllib.parse
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final, cast

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
from cortex_gateway.heads import Known
from cortex_gateway.incoming import Head, Incoming, target_of
from cortex_gateway.large_reads import LargeReads
from cortex_gateway.paths import StoredPath
from cortex_gateway.recall import Recall
from cortex_gateway.shapes import OPENAI
from cortex_gateway.wire import ANSWER_LINES, HeaderList, find, lines_of, status_line

_log = get_logger("pipeline")

# What of a refused request's body is read, and thrown away, so that its connection can stay.
DISCARD_MAX: Final = 64 * 1024
_PIPELINE_MAX: Final = 8
_PIPELINE_MAX_BYTES: Final = 256 * 1024
_LINGER_SECONDS: Final = 2.0
_STREAM_HEADERS: Final = (
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
        self._had = 0
        self._left = 0
        self._begins = 0
        self._deadline = 0.0
        self._began: float | None = None
        self._last_head: Known[Head] | None = None
        self._large_reads: LargeReads | None = None
        # As uvicorn's attributes of like names, which are looked up by name.
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._state: ServerState = server_state
        self._address: str | None = None
        # Whether reading may have been paused since the last answer.
        self._held_back = False

    # One request after the other.

    def _run(self, incoming: Incoming) -> None:
        hot = incoming.hot
        if hot is None:
            self._run_app(incoming)
            return
        self._current = incoming
        if incoming.refusal is not None or incoming.key is None:
            self._answer_error(incoming.refusal or errors.no_key(), incoming)
            self.finished()
            return
        make = Recall if isinstance(hot, StoredPath) else Exchange
        exchange = self._exchange = make(
            self._gateway,
            self,
            hot,
            incoming.key,
            incoming,
        )
        try:
            exchange.start()
        except Exception as error:  # noqa: BLE001 (a bug must end this one request, not leave its client waiting)
            _log.error("pipeline.bug", error=repr(error))
            exchange.cut(errors.internal_error())

    def _begin_app(self, incoming: Incoming) -> None:
        # Only a body that is large, of unknown size, or waits to be asked for is read as it comes.
        length = find(incoming.headers, b"content-length")
        large = length is not None and int(length) > DISCARD_MAX
        if large or incoming.expects or find(incoming.headers, b"transfer-encoding") is not None:
            self._run_app(incoming)

    def _run_app(self, incoming: Incoming) -> None:
        # As uvicorn's own on_headers_complete does it.
        self._current = incoming
        self._held_back = True
        # It may answer before the body is there, the rest of which would be taken for the next request.
        incoming.keep_alive = incoming.keep_alive and incoming.complete
        raw_path, query = target_of(incoming.url)
        raw_path = raw_path or b"/"
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
            "query_string": query,
            "headers": incoming.headers,
            "state": self.app_state.copy(),
        }
        self.cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport if incoming.complete else cast("asyncio.Transport", _Gentle(self)),
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
        self.cycle.body += incoming.take_body()
        self.cycle.more_body = not incoming.complete
        if incoming.complete or incoming.size:
            self.cycle.message_event.set()  # else the application would wait for what has come already
        self._start_asgi_task(self.cycle, cast("ASGI3Application", self.app))

    def on_response_complete(self) -> None:
        """uvicorn: the application has answered."""
        current = self._current
        if current is not None and not current.complete:
            self._current = None
            self.flow.resume_reading()
            self.linger()
            return
        self.finished()

    def finished(self) -> None:
        """The current answer is written: the next request, or wait for one."""
        current, self._current, self._exchange = self._current, None, None
        if self._held_back and (not self._queue or not self._full()):
            self._held_back = False
            self.flow.resume_reading()
        if self._closing:
            return
        if self._close_after or current is None or not current.keep_alive or self._gateway.draining:
            self._closing = True
            self._deadline = self._gateway.time() + self._gateway.settings.intake.client_stall_seconds
            self._unsent = self.transport.get_write_buffer_size()
            self.transport.close()
            return
        self._deadline = self._gateway.time() + self._gateway.keep_alive_seconds
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
            self._gateway.received = perf_counter()
            self._run(incoming)
            return
        if self._broken is not None:
            self._fail(self._broken)
            return
        incoming = self._incoming
        if incoming.head_done and not incoming.complete:
            if incoming.hot is None:
                self._begin_app(incoming)
            elif incoming.refusal is not None and incoming.expects:
                self._refuse_early(incoming)
            elif incoming.expects:
                self._continue(incoming)

    def _enqueue(self, incoming: Incoming) -> None:
        self._queue.append(incoming)
        if self._full():
            self._held_back = True
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
            cycle = cast("RequestResponseCycle | None", self.cycle)
            if cycle is not None:  # else it is being refused, and closed after that
                cycle.keep_alive = False

    # Refusals.

    def _refuse_early(self, incoming: Incoming) -> None:
        # Before the body is there: answer, then close, since the rest of it cannot be told from a request.
        assert incoming.refusal is not None
        self._fail(incoming.refusal)

    def _fail(self, error: ApiError) -> None:
        """Answer with an error, in turn, and close."""
        if self._closing:
            return  # what is wrong first is told, and nothing after it
        if self._current is not None or self._queue:
            self._broken = self._broken or error
            self._deaf = True
            return
        self._close_after = True
        self._answer_error(error, self._incoming)
        self.linger()

    def linger(self) -> None:
        """Close, but read on for a moment: unread data would reset the connection, and the answer with it."""
        if self._closing:
            return
        self._closing = True
        self._deadline = self._gateway.time() + _LINGER_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _answered(self) -> Incoming:
        # Whom an answer is for that is written now.
        return self._current or self._incoming

    def _answer_error(self, error: ApiError, incoming: Incoming | None) -> None:
        own = self._gateway.next_request_id().encode()
        shown = own if incoming is None else incoming.told_id or own
        self._gateway.refused(error, shown)
        shape = incoming.hot.shape if incoming is not None and incoming.hot is not None else OPENAI
        # An answer to HEAD has no body; a request that broke off may have been one.
        bare = incoming is not None and (incoming.method or self._begun_method()) == b"HEAD"
        self.answer(
            shape.status(error),
            lines_of(shape.headers(error, shown)),
            shape.body(error, shown),
            shown,
            bare=bare,
        )

    def _begun_method(self) -> bytes:
        parser: httptools.HttpRequestParser | None = self.parser
        return b"" if parser is None else parser.get_method()

    # What an exchange writes.

    @property
    def congested(self) -> bool:
        """Whether the client is slower than what was written to it."""
        return self._congested

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        self._transport.write(data)

    @property
    def writer(self) -> Callable[[bytes], None]:
        """`write`, without a call in between."""
        return self._transport.write

    def answer(self, status: int, lines: bytes, body: bytes, shown: bytes, *, bare: bool = False) -> None:
        """Write a whole answer in JSON; `lines` are more of its head's. `bare`: without its body."""
        gateway = self._gateway
        headers: HeaderList = self._state.default_headers
        ending = self._end_of_head()
        if status == 200 and not bare:
            begin = gateway.answer_head(headers)
            self._transport.write(
                b"%b%b\r\ncontent-length: %d\r\n%b%b%b" % (begin, shown, len(body), lines, ending, body)
            )
            return
        default = gateway.default_head(headers)
        if status == 204:  # which has neither type nor length
            head = b"%b%bx-request-id: %b\r\n%b%b" % (status_line(status), default, shown, lines, ending)
        else:
            head = b"%b%b%b%b\r\ncontent-length: %d\r\n%b%b" % (
                status_line(status),
                default,
                ANSWER_LINES,
                shown,
                len(body),
                lines,
                ending,
            )
        self._transport.write(head if bare else head + body)

    def begin_stream(self, shown: bytes, lines: bytes, kind: bytes) -> bytes:
        """The head of an answer with status 200 of unknown length; no `kind`: an event stream."""
        current = self._current
        coding = b"transfer-encoding: chunked\r\n"
        if current is not None and current.http10:
            current.keep_alive = False
            coding = b""
        return b"%b%b%bx-request-id: %b\r\n%b%b%b" % (
            status_line(200),
            self._gateway.default_head(self._state.default_headers),
            b"content-type: %b\r\n" % kind if kind else _STREAM_HEADERS,
            shown,
            lines,
            coding,
            self._end_of_head(),
        )

    def _end_of_head(self) -> bytes:
        gateway, current = self._gateway, self._current
        ending = b"\r\n"
        if self._close_after or gateway.draining or current is None or not current.keep_alive:
            self._close_after = True
            ending = b"connection: close\r\n\r\n"
        if gateway.cors is None:
            return ending
        return lines_of(gateway.cors.headers(self._answered().headers)) + ending

    def cut(self) -> None:
        """Close at once: the client takes nothing."""
        self._closing = True
        self.transport.abort()


class _Gentle:
    # The transport of an answer of the application to a request that is not all there yet.
    __slots__ = ("_pipeline", "is_closing", "write")

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.write = pipeline.transport.write
        self.is_closing = pipeline.transport.is_closing

    def close(self) -> None:
        self._pipeline.linger()
