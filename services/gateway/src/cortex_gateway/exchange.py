"""Exchange: one request from its last byte in to its last byte out: slot, attempts, relay, record."""

import time
from datetime import UTC, datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from cortex_gateway import body as request_body
from cortex_gateway import errors, sse
from cortex_gateway.chunks import LAST, frame, payload
from cortex_gateway.endpoint import Endpoint
from cortex_gateway.errors import ApiError
from cortex_gateway.keys import Key
from cortex_gateway.meter import Outcome, Record
from cortex_gateway.paths import HotPath
from cortex_gateway.relay import StreamRelay
from cortex_gateway.table import Slot
from cortex_gateway.upstream import Connection, Dial, Headers
from cortex_gateway.wire import HeaderList, find, request_head, shown_id

if TYPE_CHECKING:
    from cortex_gateway.gateway import Gateway

_CLIENT_LEFT_STATUS = 499
_PING = b": ping\n\n"


class Client(Protocol):
    """The connection that a request came on, as an exchange needs it."""

    @property
    def congested(self) -> bool:
        """Whether the client is slower than what was written to it."""
        ...

    def answer(self, status: int, headers: HeaderList, body: bytes, shown: bytes) -> None:
        """Write a whole answer."""
        ...

    def begin_stream(self, shown: bytes) -> bytes:
        """The head of an answer with status 200 that is an event stream."""
        ...

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        ...

    def finished(self) -> None:
        """The answer is complete."""
        ...

    def cut(self) -> None:
        """Close at once: the client takes nothing."""
        ...


class Phase(IntEnum):
    """Where an exchange stands."""

    NEW = 0
    WAITING = 1
    CONNECTING = 2
    SENT = 3
    OVER = 4


class Exchange:
    """Runs in callbacks only. Whatever ends it passes through `_end`, once."""

    __slots__ = (
        "_attempts",
        "_begun",
        "_body",
        "_buffer",
        "_buffered",
        "_chunked",
        "_client",
        "_connection",
        "_deadline",
        "_dial",
        "_first_token",
        "_gateway",
        "_head_sent",
        "_headers",
        "_heard",
        "_hide_usage",
        "_hot",
        "_key",
        "_model",
        "_paused_at",
        "_phase",
        "_quiet_since",
        "_record",
        "_relay",
        "_resent",
        "_route",
        "_row",
        "_shown",
        "_slot",
        "_status",
        "_stream",
        "_total_deadline",
        "_tried",
    )

    def __init__(
        self,
        gateway: "Gateway",
        client: Client,
        hot: HotPath,
        key: Key,
        headers: HeaderList,
        body: bytes,
        *,
        chunked: bool,
    ) -> None:
        """`chunked`: the client understands chunked answers (HTTP/1.1)."""
        self._gateway = gateway
        self._client = client
        self._hot = hot
        self._key = key
        self._headers = headers
        self._body = body
        self._chunked = chunked
        self._phase = Phase.NEW
        self._begun = gateway.time()
        self._attempts = 0
        self._tried: list[Endpoint] = []
        self._slot: Slot | None = None
        self._connection: Connection | None = None
        self._dial: Dial | None = None
        self._relay: StreamRelay | None = None
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._head_sent = False
        self._heard = False
        self._resent = False
        self._stream = False
        self._hide_usage = False
        self._first_token: float | None = None
        self._paused_at: float | None = None
        self._status = 0
        self._row = -1
        self._quiet_since = self._begun

    # From the client.

    def start(self) -> None:
        """Read the request, find its route, begin the first attempt; or refuse."""
        own = self._gateway.next_request_id()
        self._shown = shown_id(self._headers, own.encode())
        wanted = request_body.read(self._body)
        if isinstance(wanted, ApiError):
            self._refuse(wanted)
            return
        route = self._gateway.table.find(wanted.model)
        if route is None:
            if self._gateway.table.loaded:
                self._refuse(errors.unknown_model(wanted.model))
            else:
                self._refuse(errors.model_not_ready(wanted.model, "not known yet"))
            return
        if not self._key.all_models:
            if not (self._key.allows(route.name) or self._key.allows(wanted.model)):
                self._refuse(errors.forbidden_model(wanted.model))
                return
            if request_body.doubles_model(self._body):
                self._refuse(errors.invalid_request("`model` is given twice.", param="model"))
                return
        self._route = route
        self._model = wanted.model
        self._stream = bool(wanted.stream) and self._hot.streams
        if self._stream:
            options = wanted.stream_options
            self._hide_usage = not (options is not None and options.include_usage)
            if self._hide_usage:
                self._body = request_body.with_usage(self._body, options)
        self._accept(own)
        self._try(route.admit())

    def client_left(self) -> None:
        """The client is gone: the engine is let go in this very moment."""
        if self._phase is not Phase.OVER:
            self._end(_CLIENT_LEFT_STATUS if self._status == 0 else self._status, "client_left")

    def pause(self) -> None:
        """The client takes no more for now."""
        if self._connection is not None:
            self._paused_at = self._gateway.time()
            self._connection.pause()

    def resume(self) -> None:
        """The client takes more again."""
        if self._paused_at is not None:
            self._paused_at = None
            self._heard = True
            if self._connection is not None:
                self._connection.resume()

    def cut(self, error: ApiError) -> None:
        """End it now with this error: the gateway stops."""
        if self._phase is not Phase.OVER:
            self._give_up(error)

    # From the line.

    def admitted(self, slot: Slot) -> None:
        """A slot came free."""
        self._route.stats.waiting -= 1
        self._begin_attempt(slot)

    def unrouted(self) -> None:
        """The route went while this waited."""
        self._route.stats.waiting -= 1
        self._give_up(errors.unknown_model(self._model), "rejected")

    # From the sweeper.

    def tick(self, now: float) -> None:
        """Look at the time limits."""
        if self._phase is Phase.WAITING:
            if now >= self._deadline:
                self._leave_line()
                self._give_up(errors.queue_timeout(self._model), "rejected")
            return
        if now >= self._total_deadline:
            self._give_up(errors.engine_timeout(self._model, "for the whole answer"))
            return
        if self._phase is not Phase.SENT:
            return
        relay = self._relay
        if self._paused_at is not None:
            if now - self._paused_at >= self._gateway.settings.intake.client_stall_seconds:
                self._client.cut()
                self.client_left()
            return
        if self._heard:
            self._heard = False
            self._quiet_since = now
            if relay is not None and relay.committed:
                self._deadline = now + self._route.contract.policy.limits.idle_seconds
                return
        if now >= self._deadline:
            committed = relay is not None and relay.committed
            what = "between two tokens" if committed else "to begin its answer"
            self._count_failure()
            self._give_up(errors.engine_timeout(self._model, what))
            return
        ping = self._gateway.settings.upstream.ping_seconds
        if self._stream and self._chunked and ping and now - self._quiet_since >= ping:
            self._quiet_since = now
            self._write(frame(_PING))

    # Attempts.

    def _accept(self, own: str) -> None:
        route, now = self._route, self._begun
        route.budget.request()
        route.stats.in_flight += 1
        limits = route.contract.policy.limits
        self._total_deadline = self._deadline = now + limits.total_seconds
        self._record = Record(
            request_id=own,
            started_at=datetime.fromtimestamp(time.time(), UTC),
            model_id=route.contract.model_id,
            route=route.name,
            path=self._hot.text,
            key_id=self._key.id,
            key_name=self._key.name,
            stream=self._stream,
        )
        self._row = self._gateway.meter.begin(self._record)
        self._gateway.open(self)

    def _try(self, slot: Slot | None) -> None:
        if slot is not None:
            self._begin_attempt(slot)
            return
        route = self._route
        if not route.endpoints:
            self._give_up(errors.model_not_ready(self._model, route.contract.state), "rejected")
        elif len(route.waiting) >= route.contract.policy.queue_max:
            self._give_up(errors.queue_full(self._model), "rejected")
        else:
            self._phase = Phase.WAITING
            self._deadline = self._gateway.time() + route.contract.policy.queue_seconds
            route.waiting[self] = None
            route.stats.waiting += 1

    def _leave_line(self) -> None:
        if self._route.waiting.pop(self, 0) is None:
            self._route.stats.waiting -= 1

    def _begin_attempt(self, slot: Slot) -> None:
        self._slot = slot
        self._attempts += 1
        self._record.instance = slot.endpoint.instance
        endpoint = slot.endpoint
        connection = self._gateway.pool.take(endpoint)
        if connection is None:
            self._connect()
        else:
            self._send(connection)
            if self._attempts == 1 and self._phase is Phase.SENT:
                self._route.stats.overhead.observe(self._gateway.time() - self._begun)

    def _connect(self) -> None:
        assert self._slot is not None
        self._phase = Phase.CONNECTING
        seconds = self._route.contract.policy.limits.connect_seconds
        self._dial = self._gateway.pool.dial(self._slot.endpoint, seconds, self._connected)

    def _connected(self, connection: Connection | None) -> None:
        self._dial = None
        if connection is None or connection.closed:
            endpoint = self._endpoint()
            endpoint.failed(self._gateway.time())
            endpoint.evidence.connect_failures += 1
            self._gateway.evidence_urgent()
            self._try_elsewhere(errors.engine_unreachable(self._model))
            return
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        endpoint = self._endpoint()
        self._phase = Phase.SENT
        self._connection = connection
        self._relay = None
        now = self._gateway.time()
        limits = self._route.contract.policy.limits
        self._quiet_since = now
        if self._stream:
            self._deadline = min(now + limits.first_token_seconds, self._total_deadline)
        else:
            self._deadline = self._total_deadline
        body = self._body
        if endpoint.model is not None and endpoint.model != self._model:
            body = request_body.with_model(body, endpoint.model)
        elif endpoint.model is None and self._model != self._route.name:
            body = request_body.with_model(body, self._route.name)
        head = request_head(
            endpoint.head(self._hot.path), self._headers, self._record.request_id.encode(), len(body)
        )
        connection.send(self, head, body)
        if self._client.congested:
            self.pause()

    def _endpoint(self) -> Endpoint:
        assert self._slot is not None
        return self._slot.endpoint

    def _count_failure(self) -> None:
        self._endpoint().evidence.failures += 1

    def _try_elsewhere(self, error: ApiError) -> None:
        # An attempt failed before any content was sent on: another engine, or the end.
        slot = self._slot
        assert slot is not None
        self._drop_connection()
        self._tried.append(slot.endpoint)
        self._slot = None
        slot.release()
        if self._may_retry() and self._route.budget.take():
            other = self._route.admit(self._tried)
            if other is not None:
                self._route.stats.retries += 1
                self._begin_attempt(other)
                return
        self._give_up(error)

    def _may_retry(self) -> bool:
        if self._attempts >= self._gateway.settings.upstream.attempts_max:
            return False
        if all(endpoint in self._tried for endpoint in self._route.endpoints):
            return False
        # A client that retries has already multiplied the request: do not multiply it again.
        return (find(self._headers, b"x-stainless-retry-count") or b"0") == b"0"

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        dial, self._dial = self._dial, None
        if dial is not None:
            dial.cancel()
        self._relay = None
        self._buffer, self._buffered = [], 0
        self._status = 0

    # From the engine.

    def on_head(self, status: int, headers: Headers) -> None:
        """The engine's answer begins."""
        self._heard = True
        self._status = status
        self._endpoint().answered()
        kind = headers.get(b"content-type", b"")
        if self._stream and status == 200 and kind.startswith(b"text/event-stream"):
            self._relay = StreamRelay(
                chunked=self._chunked,
                hide_usage=self._hide_usage,
                event_max_bytes=self._gateway.settings.upstream.event_max_bytes,
            )

    def on_block(self, block: bytes, whole: bool, ended: bool) -> None:
        """Complete chunks of the answer."""
        relay = self._relay
        if relay is None:
            self._collect(payload(block), ended)
            return
        self._heard = True
        if relay.committed and not ended:
            out = relay.block(block, whole)
            if out:
                self._client.write(out)
            elif relay.too_large:
                self._count_failure()
                self._give_up(errors.stream_broke(self._model))
            return
        self._pass_on(relay, relay.block(block, whole) if block else b"", ended)

    def on_body(self, data: bytes, ended: bool) -> None:
        """A piece of an answer that is not chunked."""
        self._heard = True
        relay = self._relay
        if relay is None:
            self._collect(data, ended)
        else:
            self._pass_on(relay, relay.body(data), ended)

    def on_broken(self, answered: bool) -> None:
        """The engine's connection died."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.reused and not answered and not self._resent:
            # It had been closed on the engine's side while idle: nothing was processed there.
            self._resent = True
            self._connect()
            return
        self._count_failure()
        endpoint = self._endpoint()
        if not answered:
            endpoint.failed(self._gateway.time())
            self._gateway.evidence_urgent()
        if self._relay is not None and self._relay.committed:
            self._give_up(errors.stream_broke(self._model))
        else:
            self._try_elsewhere(errors.engine_unreachable(self._model))

    def _pass_on(self, relay: StreamRelay, out: bytes, ended: bool) -> None:
        if ended:
            self._connection = None
            out += relay.end()
        if relay.error is not None and not relay.committed:
            # An error event before any content is as good as an answer with that status.
            self._engine_error(sse.status_of(relay.error), relay.error)
            return
        if relay.too_large:
            self._count_failure()
            self._give_up(errors.stream_broke(self._model))
            return
        if relay.committed and self._first_token is None:
            self._note_first_token()
        if not ended:
            if out:
                self._write(out)
            return
        if not relay.complete and relay.error is None:
            self._count_failure()
            if relay.committed:
                self._give_up(errors.stream_broke(self._model), before=out)
            else:
                self._try_elsewhere(errors.engine_unreachable(self._model))
            return
        failed = relay.error is not None
        if failed:
            self._count_failure()
        else:
            self._endpoint().evidence.successes += 1
        self._end(200, "engine_failed" if failed else "done", out)

    def _collect(self, data: bytes, ended: bool) -> None:
        if data:
            self._buffer.append(data)
            self._buffered += len(data)
            if self._buffered > self._gateway.settings.upstream.response_max_bytes:
                self._count_failure()
                self._give_up(errors.engine_unreachable(self._model))
                return
        if not ended:
            return
        self._connection = None
        answer = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        if not 200 <= self._status < 300:
            self._engine_error(self._status if self._status >= 400 else 502, answer)
            return
        usage = sse.usage_of(answer)
        self._endpoint().evidence.successes += 1
        if self._head_sent:
            # A ping has opened a stream, and the engine does not stream.
            answer = b"data: " + answer + b"\n\n" + sse.DONE_EVENT
            answer = frame(answer) if self._chunked else answer
        self._end(self._status, "done", answer, usage)

    def _engine_error(self, status: int, answer: bytes) -> None:
        error = errors.from_engine(status, answer)
        endpoint = self._endpoint()
        if status in (429, 503):
            endpoint.overloaded(self._gateway.time())
        if status == 429 or status >= 500 or status in (401, 403):
            if status not in (429, 503):
                self._count_failure()
            self._try_elsewhere(error)
            return
        endpoint.evidence.successes += 1
        self._give_up(error, "rejected")

    def _note_first_token(self) -> None:
        seconds = self._gateway.time() - self._begun
        self._first_token = seconds
        self._route.stats.first_token.observe(seconds)
        evidence = self._endpoint().evidence
        evidence.first_token_sum += seconds
        evidence.first_token_count += 1

    # To the client.

    def _write(self, data: bytes) -> None:
        if not self._head_sent:
            self._head_sent = True
            data = self._client.begin_stream(self._shown) + data
        self._client.write(data)

    def _refuse(self, error: ApiError) -> None:
        # Before the request was accepted for a route: no record.
        self._phase = Phase.OVER
        self._gateway.stats.refuse(error.status)
        self._client.answer(error.status, error.headers(), error.body(), self._shown)
        self._client.finished()

    def _give_up(self, error: ApiError, outcome: Outcome = "engine_failed", *, before: bytes = b"") -> None:
        if self._head_sent or before:
            event = error.event()
            self._end(error.status, outcome, before + (frame(event) if self._chunked else event))
        else:
            self._end(error.status, outcome, error=error)

    def _end(
        self,
        status: int,
        outcome: Outcome,
        last: bytes = b"",
        usage: sse.EngineUsage | None = None,
        *,
        error: ApiError | None = None,
    ) -> None:
        """The one way out: everything is given back, the record is written, then the last bytes."""
        relay = self._relay
        if self._phase is Phase.WAITING:
            self._leave_line()
        self._phase = Phase.OVER
        self._fill(status, outcome, usage if relay is None else relay.usage, relay)
        slot, self._slot = self._slot, None
        self._drop_connection()
        gateway = self._gateway
        gateway.close(self)
        gateway.meter.end(self._row, self._record)
        if slot is not None:
            slot.release()
        if outcome == "client_left":
            return
        client = self._client
        if error is not None:
            client.answer(status, error.headers(), error.body(), self._shown)
        elif relay is not None or self._head_sent:
            if not self._head_sent:
                self._head_sent = True
                last = client.begin_stream(self._shown) + last
            client.write(last + LAST if self._chunked else last)
        else:
            client.answer(status, [], last, self._shown)
        client.finished()

    def _fill(
        self, status: int, outcome: Outcome, usage: sse.EngineUsage | None, relay: StreamRelay | None
    ) -> None:
        record, stats = self._record, self._route.stats
        seconds = self._gateway.time() - self._begun
        record.status, record.outcome = status, outcome
        record.duration_seconds = seconds
        record.attempts = max(1, self._attempts)
        record.first_token_seconds = self._first_token
        if usage is not None:
            record.source = "engine"
            record.prompt_tokens = max(0, usage.prompt_tokens or 0)
            record.completion_tokens = max(0, usage.completion_tokens or 0)
            details = usage.prompt_tokens_details
            record.cached_tokens = max(0, details.cached_tokens or 0) if details is not None else 0
        else:
            record.source = "counted"
            record.completion_tokens = relay.tokens if relay is not None else 0
        stats.in_flight -= 1
        stats.prompt_tokens += record.prompt_tokens
        stats.completion_tokens += record.completion_tokens
        stats.finished(status, outcome, seconds)
