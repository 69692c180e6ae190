"""Counts of what the gateway does: plain integers on the hot path, Prometheus' families when asked."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 120)
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 600)
_OVERHEAD = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25)


class Histogram:
    """A histogram that costs a third of a microsecond an observation."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Put the counts into a family, cumulated."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric(labels, buckets, sum_value=self._sum)


class RouteStats:
    """Counts of one route."""

    __slots__ = (
        "completion_tokens",
        "duration",
        "first_token",
        "in_flight",
        "overhead",
        "prompt_tokens",
        "retries",
        "statuses",
        "waiting",
    )

    def __init__(self) -> None:
        self.statuses: dict[tuple[int, str], int] = {}
        self.in_flight = 0
        self.waiting = 0
        self.retries = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.first_token = Histogram(_FIRST_TOKEN)
        self.duration = Histogram(_DURATION)
        self.overhead = Histogram(_OVERHEAD)

    def finished(self, status: int, outcome: str, seconds: float) -> None:
        """A request ended."""
        key = (status, outcome)
        self.statuses[key] = self.statuses.get(key, 0) + 1
        self.duration.observe(seconds)


class Stats:
    """Counts of the process; bounded by the routes there are."""

    def __init__(self) -> None:
        self._routes: dict[str, RouteStats] = {}
        self.refused: dict[int, int] = {}
        self.connections = 0

    def route(self, name: str) -> RouteStats:
        """The counts of a route."""
        return self._routes.setdefault(name, RouteStats())

    def forget_route(self, name: str) -> None:
        """The route is gone."""
        self._routes.pop(name, None)

    def refuse(self, status: int) -> None:
        """A request was refused before it was accepted for a route."""
        self.refused[status] = self.refused.get(status, 0) + 1

    def items(self) -> Iterable[tuple[str, RouteStats]]:
        """All routes with their counts."""
        return self._routes.items()


class MeterState(Protocol):
    """What of the meter is shown: bytes that the bus does not have yet, records lost and sent."""

    @property
    def journal_bytes(self) -> int: ...
    @property
    def records_lost(self) -> int: ...
    @property
    def records_sent(self) -> int: ...


class StatsCollector(Collector):
    """Shows Stats and the meter's state to Prometheus."""

    def __init__(self, stats: Stats, meter: MeterState) -> None:
        self._stats = stats
        self._meter = meter

    def collect(self) -> Iterable[Metric]:
        """The families, made anew."""
        yield from self._counts()
        yield from self._histograms()
        yield from self._metering()

    def _counts(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "cortex_gateway_requests", "Finished requests.", labels=["route", "status", "outcome"]
        )
        retries = CounterMetricFamily(
            "cortex_gateway_retries", "Attempts added to requests.", labels=["route"]
        )
        tokens = CounterMetricFamily("cortex_gateway_tokens", "Tokens metered.", labels=["route", "kind"])
        in_flight = GaugeMetricFamily(
            "cortex_gateway_in_flight_requests", "Requests accepted and not finished.", labels=["route"]
        )
        waiting = GaugeMetricFamily(
            "cortex_gateway_waiting_requests", "Requests that wait for a slot.", labels=["route"]
        )
        for name, route in self._stats.items():
            for (status, outcome), count in route.statuses.items():
                requests.add_metric([name, str(status), outcome], count)
            retries.add_metric([name], route.retries)
            tokens.add_metric([name, "prompt"], route.prompt_tokens)
            tokens.add_metric([name, "completion"], route.completion_tokens)
            in_flight.add_metric([name], route.in_flight)
            waiting.add_metric([name], route.waiting)
        refused = CounterMetricFamily(
            "cortex_gateway_refused_requests",
            "Requests refused before any route took them.",
            labels=["status"],
        )
        for status, count in self._stats.refused.items():
            refused.add_metric([str(status)], count)
        connections = GaugeMetricFamily("cortex_gateway_connections", "Open client connections.")
        connections.add_metric([], self._stats.connections)
        yield from (requests, retries, tokens, in_flight, waiting, refused, connections)

    def _histograms(self) -> Iterable[Metric]:
        first = HistogramMetricFamily(
            "cortex_gateway_first_token_seconds", "From the request to its first content.", labels=["route"]
        )
        duration = HistogramMetricFamily(
            "cortex_gateway_duration_seconds", "From the request to its last byte.", labels=["route"]
        )
        overhead = HistogramMetricFamily(
            "cortex_gateway_overhead_seconds",
            "From a request's last byte to its sending on, if neither slot nor connection was waited for.",
            labels=["route"],
        )
        for name, route in self._stats.items():
            route.first_token.add_to(first, [name])
            route.duration.add_to(duration, [name])
            route.overhead.add_to(overhead, [name])
        yield from (first, duration, overhead)

    def _metering(self) -> Iterable[Metric]:
        spooled = GaugeMetricFamily("cortex_gateway_journal_bytes", "Usage that the bus does not have yet.")
        spooled.add_metric([], self._meter.journal_bytes)
        lost = CounterMetricFamily(
            "cortex_gateway_usage_lost_records", "Usage records lost: no room on disk."
        )
        lost.add_metric([], self._meter.records_lost)
        sent = CounterMetricFamily("cortex_gateway_usage_sent_records", "Usage records the bus has taken.")
        sent.add_metric([], self._meter.records_sent)
        yield from (spooled, lost, sent)
