"""Counts of what the gateway does: plain numbers on the hot path; `exposition` makes metrics of them.

An observation costs a third of a microsecond, nothing is looked up by labels, and an event of a stream costs
nothing. The gen_ai histograms and their buckets are those of OpenTelemetry's conventions for generative AI.
"""

from bisect import bisect_left
from math import inf
from typing import Protocol

from cortex_gateway.usage_record import UsageRecord

FIRST_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
PER_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
DURATION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = tuple(4**power for power in range(14))
OVERHEAD_SECONDS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25)
QUEUE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# What an engine or a bug may name without end has a bound; the rest counts under the conventions' own word.
_NAMES_MAX = 64
OTHER = "_OTHER"


class Histogram:
    """A histogram that costs a third of a microsecond an observation, less where the last bucket is met."""

    __slots__ = ("_at", "_bounds", "_counts", "_high", "_low", "_more", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        # The bucket that was met last, above `_low`, up to `_high`; how often it was, not in its count yet.
        self._at = 0
        self._more = 0
        self._low, self._high = -inf, bounds[0]
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        if not self._low < value <= self._high:
            self._fold()
            bounds = self._bounds
            at = self._at = bisect_left(bounds, value)
            self._low = bounds[at - 1] if at else -inf
            self._high = bounds[at] if at < len(bounds) else inf
        self._more += 1
        self.sum += value

    def _fold(self) -> None:
        self._counts[self._at] += self._more
        self._more = 0

    def values(self) -> list[float]:
        """The counts of its buckets, then the sum: as a Sample has them."""
        self._fold()
        return [*self._counts, self.sum]


class Seen(Protocol):
    """What became of requests on an endpoint."""

    @property
    def successes(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def connect_failures(self) -> int: ...


class Watched(Protocol):
    """What of an endpoint is shown: `told` and `evidence` together are all that was seen of it."""

    @property
    def instance(self) -> str: ...
    @property
    def removed(self) -> bool: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def ejected_until(self) -> float: ...
    @property
    def ejections(self) -> int: ...
    @property
    def told(self) -> Seen: ...
    @property
    def evidence(self) -> Seen: ...


class OperationStats:
    """Counts of one kind of request (chat, embeddings ...) to one route."""

    __slots__ = ("completion_tokens", "duration", "failed", "first_token", "per_token", "prompt_tokens")

    def __init__(self) -> None:
        self.first_token = Histogram(FIRST_TOKEN_SECONDS)
        self.per_token = Histogram(PER_TOKEN_SECONDS)
        self.duration = Histogram(DURATION_SECONDS)
        self.failed: dict[str, Histogram] = {}
        self.prompt_tokens = Histogram(TOKENS)
        self.completion_tokens = Histogram(TOKENS)

    def done(self, record: UsageRecord) -> None:
        """A request was answered."""
        seconds, tokens = record.duration_seconds, record.completion_tokens
        self.duration.observe(seconds)
        first = record.first_token_seconds
        if first is not None and tokens > 1:
            self.per_token.observe((seconds - first) / (tokens - 1))
        if tokens:
            self.completion_tokens.observe(tokens)
        if record.prompt_tokens:
            self.prompt_tokens.observe(record.prompt_tokens)

    def not_done(self, record: UsageRecord, error: str) -> None:
        """A request ended otherwise; `error` says how in a word."""
        failed = self.failed
        if error not in failed:
            error = error if len(failed) < _NAMES_MAX else OTHER
            failed.setdefault(error, Histogram(DURATION_SECONDS))
        failed[error].observe(record.duration_seconds)
        if record.completion_tokens:
            self.completion_tokens.observe(record.completion_tokens)
        if record.prompt_tokens:
            self.prompt_tokens.observe(record.prompt_tokens)


class EndpointCounts:
    """Counts of endpoints that have left."""

    __slots__ = ("connect_failures", "ejections", "failures", "successes")

    def __init__(self) -> None:
        self.successes = 0
        self.failures = 0
        self.connect_failures = 0
        self.ejections = 0

    @property
    def any(self) -> bool:
        """Whether anything was counted."""
        return bool(self.successes or self.failures or self.connect_failures or self.ejections)

    def take(self, endpoint: Watched) -> None:
        """Add an endpoint's counts."""
        for seen in (endpoint.told, endpoint.evidence):
            self.successes += seen.successes
            self.failures += seen.failures
            self.connect_failures += seen.connect_failures
        self.ejections += endpoint.ejections


class RouteStats:
    """Counts of one route."""

    __slots__ = (
        "_more",
        "_outcome",
        "_status",
        "_statuses",
        "_watched",
        "answer_overhead",
        "cached_tokens",
        "engine",
        "in_flight",
        "left",
        "operations",
        "overhead",
        "queue",
        "resends",
        "retries",
        "waiting",
    )

    def __init__(self) -> None:
        self.engine = ""
        self.operations: dict[str, OperationStats] = {}
        self._statuses: dict[tuple[int, str], int] = {}
        # How a request ended last, and how many did that are not in the dict yet.
        self._status: int = 200
        self._outcome: str = "done"
        self._more = 0
        self.in_flight = 0
        self.waiting = 0
        self.retries = 0
        self.resends = 0
        self.cached_tokens = 0
        self.overhead = Histogram(OVERHEAD_SECONDS)
        self.answer_overhead = Histogram(OVERHEAD_SECONDS)
        self.queue = Histogram(QUEUE_SECONDS)
        self.left = EndpointCounts()
        self._watched: list[Watched] = []

    def operation(self, name: str) -> OperationStats:
        """The counts of one kind of request."""
        return self.operations.get(name) or self.operations.setdefault(name, OperationStats())

    def ended(self, operation: OperationStats, record: UsageRecord, error: str) -> None:
        """An accepted request ended; `error` is empty if it was answered."""
        self.in_flight -= 1
        status, outcome = record.status, record.outcome or ""
        if status != self._status or outcome != self._outcome:
            self._fold()
            self._status, self._outcome = status, outcome
        self._more += 1
        self.cached_tokens += record.cached_tokens
        if error:
            operation.not_done(record, error)
        else:
            operation.done(record)

    def _fold(self) -> None:
        if self._more:
            key = (self._status if 100 <= self._status < 600 else 502, self._outcome)
            self._statuses[key] = self._statuses.get(key, 0) + self._more
            self._more = 0

    @property
    def statuses(self) -> dict[tuple[int, str], int]:
        """How many requests ended with which status and outcome."""
        self._fold()
        return self._statuses

    def watch(self, endpoint: Watched) -> None:
        """An endpoint joined the route."""
        self.endpoints().append(endpoint)

    def endpoints(self) -> list[Watched]:
        """The endpoints of the route, and those that left with requests under way.

        The counts of one that is gone go into `left`, so that no total falls.
        """
        staying: list[Watched] = []
        for endpoint in self._watched:
            if endpoint.removed and not endpoint.outstanding:
                self.left.take(endpoint)
            else:
                staying.append(endpoint)
        self._watched = staying
        return staying


class Stats:
    """Counts of the process; bounded by the routes there are."""

    def __init__(self) -> None:
        self._routes: dict[str, RouteStats] = {}
        self.refused: dict[tuple[int, str], int] = {}
        self.connections = 0

    def route(self, name: str) -> RouteStats:
        """The counts of a route."""
        return self._routes.setdefault(name, RouteStats())

    def forget_route(self, name: str) -> None:
        """The route is gone."""
        self._routes.pop(name, None)

    def refuse(self, status: int, reason: str) -> None:
        """A request was refused before it was accepted for a route; `reason` is the error's code or type."""
        key = (status, reason)
        if key not in self.refused and len(self.refused) >= _NAMES_MAX:
            key = (status, OTHER)
        self.refused[key] = self.refused.get(key, 0) + 1

    def routes(self) -> dict[str, RouteStats]:
        """All routes with their counts."""
        return self._routes
