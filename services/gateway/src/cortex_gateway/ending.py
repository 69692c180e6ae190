"""Ending: what an exchange holds, what it writes to its client, and its one way out with its record."""

from abc import ABC, abstractmethod
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from cortex_gateway import sse
from cortex_gateway.chunks import LAST, frame
from cortex_gateway.endpoint import Endpoint
from cortex_gateway.errors import ApiError
from cortex_gateway.keys import Key
from cortex_gateway.meter import Outcome
from cortex_gateway.paths import HotPath
from cortex_gateway.relay import StreamRelay
from cortex_gateway.table import Slot
from cortex_gateway.upstream import Connection, Dial
from cortex_gateway.wire import HeaderList

if TYPE_CHECKING:
    from cortex_gateway.gateway import Gateway


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
    ACCEPTED = 1
    WAITING = 2
    CONNECTING = 3
    SENT = 4
    OVER = 5


class Ending(ABC):
    """Whatever ends an exchange passes through `_end`, once."""

    # An exchange is one object whose subjects are layers of classes: Ending, Attempts, Answering, Exchange.
    # Objects instead would cost an access for each of them with every event of every stream.
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
        "_paused",
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
        self._paused = False
        self._status = 0
        self._row = -1
        self._quiet_since = self._begun

    @abstractmethod
    def tick(self, now: float) -> None:
        """Look at the time limits; `now` is the loop's time in seconds."""

    def cut(self, error: ApiError) -> None:
        """End it now with this error: the gateway stops, or failed."""
        if self._phase is Phase.NEW:
            self._refuse(error)
        elif self._phase is not Phase.OVER:
            self._give_up(error)

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

    def _leave_line(self) -> None:
        if self._route.waiting.pop(self, 0) is None:
            self._route.stats.waiting -= 1

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
