"""Ending: what an exchange holds, what it writes to its client, and its one way out with its record."""

from abc import abstractmethod
from enum import IntEnum
from time import perf_counter
from typing import TYPE_CHECKING

from cortex_gateway.balance import Affinity
from cortex_gateway.chunks import LAST, frame
from cortex_gateway.completions import EngineUsage
from cortex_gateway.dialling import Dial
from cortex_gateway.endpoint import Endpoint
from cortex_gateway.errors import ApiError
from cortex_gateway.incoming import Incoming
from cortex_gateway.key_limits import Hold
from cortex_gateway.keys import Key
from cortex_gateway.large_body import LargeBody
from cortex_gateway.paths import HotPath, Relay
from cortex_gateway.stats import OperationStats
from cortex_gateway.table import Route, Slot
from cortex_gateway.trace import Span
from cortex_gateway.upstream import Answerer, Connection
from cortex_gateway.usage_record import Outcome, UsageRecord
from cortex_gateway.wanted import Wanted
from cortex_gateway.wire import HeaderList, lines_of, passed_lines

if TYPE_CHECKING:
    from cortex_gateway.gateway import Gateway
    from cortex_gateway.pipeline import Pipeline


class Phase(IntEnum):
    """Where an exchange stands."""

    NEW = 0
    ACCEPTED = 1
    WAITING = 2
    CONNECTING = 3
    SENT = 4
    OVER = 5
    ASKING = 6  # whether the key has anything left; not accepted yet


class Ending(Answerer):
    """Whatever ends an exchange passes through `_end`, once."""

    # An exchange is one object whose subjects are layers of classes: Ending, Attempts, Answering, Exchange.
    # Objects instead would cost an access for each of them with every event of every stream.
    __slots__ = (
        "_asked",
        "_attempts",
        "_attempts_before",
        "_begun",
        "_buffer",
        "_buffered",
        "_chunked",
        "_client",
        "_connection",
        "_counts",
        "_deadline",
        "_dial",
        "_extra",
        "_failure",
        "_first_token",
        "_gateway",
        "_given",
        "_head_sent",
        "_headers",
        "_heard",
        "_hide_usage",
        "_hold",
        "_hot",
        "_joined",
        "_key",
        "_kind",
        "_large",
        "_model",
        "_overhead",
        "_passed",
        "_path",
        "_patience",
        "_paused",
        "_phase",
        "_queued_at",
        "_quiet_since",
        "_received",
        "_record",
        "_relay",
        "_resent",
        "_route",
        "_row",
        "_shown",
        "_slot",
        "_span",
        "_spares",
        "_status",
        "_stream",
        "_tokens_seen",
        "_told_id",
        "_total_deadline",
        "_tried",
        "_wanted",
        "affinity",
    )

    # Of an accepted request.
    _counts: OperationStats
    _deadline: float
    _model: str
    _path: bytes
    _queued_at: float
    _record: UsageRecord
    _route: Route
    _shown: bytes
    _total_deadline: float

    def __init__(
        self,
        gateway: "Gateway",
        client: "Pipeline",
        hot: HotPath,
        key: Key,
        incoming: Incoming,
    ) -> None:
        self._gateway = gateway
        self._client = client
        self._hot = hot
        self._key = key
        self._headers = incoming.headers
        self._passed: bytes | None = incoming.passed
        self._told_id: bytes | None = incoming.told_id
        self._large: LargeBody | None = incoming.take_large_body()
        self._joined = b"" if self._large is not None else incoming.take_body()
        self._chunked = not incoming.http10  # whether the client understands chunked answers
        self._phase = Phase.NEW
        self._begun = gateway.time()
        self._received = gateway.received
        self._failure = ""
        self._overhead = 0.0
        self._span: Span | None = None
        if incoming.traceparent is not None or gateway.begins_traces:
            self._begin_span()
        self._patience: float | None = incoming.patience
        self._spares: list[str] = []
        self._wanted: Wanted | None = None
        self._given = b""
        self.affinity: Affinity | None = None
        self._attempts = self._attempts_before = 0
        self._tried: list[Endpoint] = []
        self._slot: Slot | None = None
        self._hold: Hold | None = None
        self._asked: tuple[str, Wanted]
        self._connection: Connection | None = None
        self._dial: Dial | None = None
        self._relay: Relay | None = None
        self._extra: HeaderList = []
        self._kind = b""
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._head_sent = False
        self._heard = False
        self._resent = False
        self._stream = False
        self._hide_usage = False
        self._first_token: float | None = None
        self._paused = False
        self._tokens_seen = 0
        self._status = 0
        self._row = -1
        self._quiet_since = self._begun

    @property
    def _body(self) -> bytes:
        # The request's body in one piece, into which a large one is made if it must be.
        large = self._large
        if large is not None:
            self._body = large.joined()
        return self._joined

    @_body.setter
    def _body(self, body: bytes) -> None:
        self._joined, self._large = body, None

    def _body_size(self) -> int:
        return self._large.size if self._large is not None else len(self._joined)

    @abstractmethod
    def admitted(self, slot: Slot) -> None:
        """The slot that was waited for is this request's now."""

    @abstractmethod
    def unrouted(self) -> None:
        """The route went while this waited."""

    @abstractmethod
    def _fall_back(self) -> bool:
        """Go on with another model; false: there is none."""

    @abstractmethod
    def tick(self, now: float) -> None:
        """Look at the time limits; `now` is the loop's time in seconds."""

    def cut(self, error: ApiError) -> None:
        """End it now with this error: the gateway stops, or failed."""
        if self._phase is Phase.NEW or self._phase is Phase.ASKING:
            self._refuse(error)
        elif self._phase is not Phase.OVER:
            self._spares = []
            self._give_up(error)

    def _write(self, data: bytes) -> None:
        if not self._head_sent:
            self._head_sent = True
            data = self._client.begin_stream(self._shown, self._more_lines(), self._kind) + data
        self._client.write(data)

    def _refuse(self, error: ApiError) -> None:
        # Before the request was accepted for a route: no record.
        self._phase = Phase.OVER
        self._let_go()
        self._gateway.refused(error, self._shown)
        if self._span is not None:
            self._gateway.tracer.end_refused(self._span, self._hot.operation, self._hot.text, error)
        self._answer_error(error)
        self._client.finished()

    def _answer_error(self, error: ApiError) -> None:
        shape, shown = self._hot.shape, self._shown
        lines = lines_of(shape.headers(error, shown))
        limits = self._key.limits
        if limits is not None:
            lines += limits.lines(self._gateway.time())
        self._client.answer(shape.status(error), lines, shape.body(error, shown), shown)

    def _give_up(self, error: ApiError, outcome: Outcome = "engine_failed", *, before: bytes = b"") -> None:
        relay = self._relay
        if self._spares and not before and self._may_fall_back(error) and self._fall_back():
            return
        self._failure = error.reason
        if relay is not None and self._head_sent and not relay.events:
            # Nothing can be added to it: cut, it is seen to be incomplete.
            self._end(error.status, outcome, cut=True)
        elif self._head_sent or before:
            event = self._hot.shape.event(error, self._shown)
            self._end(error.status, outcome, before + (frame(event) if self._chunked else event))
        else:
            self._end(error.status, outcome, error=error)

    def _may_fall_back(self, error: ApiError) -> bool:
        # What the client said wrong is wrong everywhere; what it has begun to read cannot be begun again.
        relay = self._relay
        return (error.status >= 500 or error.status == 429) and (relay is None or not relay.committed)

    def _end(
        self,
        status: int,
        outcome: Outcome,
        last: bytes = b"",
        usage: EngineUsage | None = None,
        *,
        error: ApiError | None = None,
        cut: bool = False,
    ) -> None:
        """The one way out: the record is written, then the last bytes, then everything is given back."""
        if self._phase is Phase.OVER:
            return
        relay, client = self._relay, self._client
        if self._phase is Phase.WAITING:
            self._leave_line()
        self._phase = Phase.OVER
        answered = False
        try:
            self._fill(status, outcome, usage if relay is None else relay.usage, relay)
            # Not kept: a hold knows whom it is for, and the two would wait for the garbage collector.
            hold, self._hold = self._hold, None
            if hold is not None:
                self._settle(hold)
            self._gateway.recorder.end(self._row, self._record)
            if outcome != "client_left":
                self._say_last(status, outcome, last, relay, error, cut=cut)
            answered = True
        finally:
            # What nobody waits for comes after the client's answer; whatever fails, it comes.
            try:
                self._give_back(outcome)
            finally:
                if not answered:
                    client.cut()
                elif outcome != "client_left" and (error is not None or not cut):
                    client.finished()

    def _say_last(
        self,
        status: int,
        outcome: Outcome,
        last: bytes,
        relay: Relay | None,
        error: ApiError | None,
        *,
        cut: bool,
    ) -> None:
        client, pool = self._client, self._gateway.pool
        ended, pool.ended = pool.ended, 0.0
        if error is not None:
            self._answer_error(error)
        elif cut:
            client.cut()
        elif relay is not None or self._head_sent:
            if not self._head_sent:
                self._head_sent = True
                last = client.begin_stream(self._shown, self._more_lines(), self._kind) + last
            client.write(last + LAST if self._chunked else last)
        else:
            ours = int((self._overhead + (perf_counter() - ended if ended else 0.0)) * 1e6)
            # Compiled, what is formatted is evaluated twice unless all of it is bytes and integers.
            lines = b"%bx-cortex-overhead-us: %d\r\n" % (self._more_lines(), ours)
            client.answer(status, lines, last, self._shown)
        if ended and outcome == "done":
            self._route.stats.answer_overhead.observe(perf_counter() - ended)

    def _give_back(self, outcome: Outcome) -> None:
        # What it held, then what is counted of it; whoever waits in line is served.
        slot, self._slot = self._slot, None
        self._drop_connection()
        self._gateway.close(self)
        try:
            if self.affinity is not None:
                self.affinity.over()
            self._count("" if outcome == "done" else self._failure or outcome, slot)
        finally:
            if slot is not None:
                slot.release()

    def _count(self, failure: str, slot: Slot | None) -> None:
        self._route.stats.ended(self._counts, self._record, failure)
        gateway = self._gateway
        if failure or gateway.logs_all:
            gateway.access.ended(self._record, failure, self._shown)
        if self._span is not None:
            self._end_span(self._span, failure, slot)

    def _fill(self, status: int, outcome: Outcome, usage: EngineUsage | None, relay: Relay | None) -> None:
        record = self._record
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
            if self.affinity is not None:
                self.affinity.told(None if details is None else details.cached_tokens)
        else:
            record.source = "counted"
            if relay is not None:
                record.completion_tokens = max(0, relay.tokens)  # comments count as less than nothing
                if relay.began is not None:
                    record.prompt_tokens = max(0, relay.began.prompt_tokens or 0)

    def _begin_span(self) -> None:
        lines, self._span = self._gateway.tracer.begin(self._headers)
        if lines:
            passed = self._passed
            if passed is None:
                passed = passed_lines(self._headers, self._hot.content_type(self._headers))
            self._passed = lines + passed

    def _end_span(self, span: Span, failure: str, slot: Slot | None) -> None:
        route = self._route
        self._gateway.tracer.end(
            span,
            self._record,
            operation=self._hot.operation,
            model=self._model,
            engine=route.contract.engine,
            url="" if slot is None else slot.endpoint.url,
            failure=failure,
        )

    def _settle(self, hold: Hold) -> None:
        record, estimate = self._record, self._route.estimate
        tokens = record.prompt_tokens + record.completion_tokens
        used = tokens
        if record.source == "engine":
            estimate.learn(self._body_size(), record.prompt_tokens, record.completion_tokens)
        elif self._attempts and not record.prompt_tokens:
            used += estimate.prompt(self._body_size())  # an engine has read it
        hold.end(used, tokens, self._gateway.time())

    def _let_go(self) -> None:
        # Of what it waited for, or had, and will not use.
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.end(0, 0, self._gateway.time())

    def _more_lines(self) -> bytes:
        limits = self._key.limits
        if limits is None:
            return lines_of(self._extra)
        lines = limits.lines(self._gateway.time())
        return lines_of(self._extra) + lines if self._extra else lines

    def _leave_line(self) -> None:
        if self._route.waiting.remove(self):
            self._waited()

    def _waited(self) -> None:
        stats = self._route.stats
        stats.waiting -= 1
        stats.queue.observe(self._gateway.time() - self._queued_at)

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

    def _endpoint(self) -> Endpoint:
        assert self._slot is not None
        return self._slot.endpoint

    def _count_failure(self) -> None:
        self._endpoint().evidence.failures += 1
