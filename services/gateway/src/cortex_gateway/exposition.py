"""Exposition: the gateway's counts as families of metrics, all of which are listed in docs/gateway.md."""

import platform
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Protocol

from prometheus_client import ProcessCollector

from cortex_gateway import NATIVE
from cortex_gateway import stats as counted
from cortex_gateway.families import Family, counter, gauge, histogram
from cortex_gateway.stats import RouteStats, Stats, Watched

_ROUTE = "route"
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")


class MeterState(Protocol):
    """What of the meter is shown."""

    @property
    def journal_bytes(self) -> int: ...
    @property
    def uncounted_bytes(self) -> int: ...
    @property
    def records_lost(self) -> int: ...
    @property
    def records_sent(self) -> int: ...


def families(stats: Stats, now: float) -> Iterable[Family]:
    """Everything that Stats counts; `now` is of the event loop's clock, in seconds."""
    routes = stats.routes()
    yield from _gen_ai(routes)
    yield from _requests(routes)
    yield from _times(routes)
    yield from _endpoints(routes, now)
    refused = counter(
        "cortex_gateway_refused_requests", "Requests refused before a route took them.", "code", "status"
    )
    for (status, reason), count in stats.refused.items():
        refused.add((reason, str(status)), count)
    connections = gauge("cortex_gateway_connections", "Open client connections.")
    connections.add((), stats.connections)
    yield from (refused, connections)


def _gen_ai(routes: dict[str, RouteStats]) -> Iterable[Family]:
    first = histogram(
        "gen_ai_server_time_to_first_token_seconds",
        "From a streamed request's last byte to its first content.",
        counted.FIRST_TOKEN_SECONDS,
        *_GEN_AI,
    )
    per_token = histogram(
        "gen_ai_server_time_per_output_token_seconds",
        "Time for each token after the first, mean of a finished stream.",
        counted.PER_TOKEN_SECONDS,
        *_GEN_AI,
    )
    duration = histogram(
        "gen_ai_server_request_duration_seconds",
        "From a request's last byte to its answer's last; error_type is empty if it was answered.",
        counted.DURATION_SECONDS,
        *_GEN_AI,
        "error_type",
    )
    tokens = histogram(
        "gen_ai_client_token_usage",
        "Tokens of a request, as metered.",
        counted.TOKENS,
        *_GEN_AI,
        "gen_ai_token_type",
    )
    for name, route in routes.items():
        for operation, seen in route.operations.items():
            labels = (operation, route.engine, name)
            first.add(labels, *seen.first_token.values())
            per_token.add(labels, *seen.per_token.values())
            duration.add((*labels, ""), *seen.duration.values())
            for error, failed in seen.failed.items():
                duration.add((*labels, error), *failed.values())
            tokens.add((*labels, "input"), *seen.prompt_tokens.values())
            tokens.add((*labels, "output"), *seen.completion_tokens.values())
    yield from (first, per_token, duration, tokens)


def _requests(routes: dict[str, RouteStats]) -> Iterable[Family]:
    requests = counter("cortex_gateway_requests", "Finished requests.", "outcome", _ROUTE, "status")
    tokens = counter("cortex_gateway_tokens", "Tokens metered; cached ones are prompt's too.", "kind", _ROUTE)
    retries = counter("cortex_gateway_retries", "Attempts added to requests, on other engines.", _ROUTE)
    resends = counter(
        "cortex_gateway_resends", "Requests sent again since their idle connection was closed.", _ROUTE
    )
    in_flight = gauge("cortex_gateway_in_flight_requests", "Requests accepted and not finished.", _ROUTE)
    waiting = gauge("cortex_gateway_waiting_requests", "Requests that wait for a slot.", _ROUTE)
    for name, route in routes.items():
        for (status, outcome), count in route.statuses.items():
            requests.add((outcome, name, str(status)), count)
        operations = route.operations.values()
        tokens.add(("prompt", name), sum(each.prompt_tokens.sum for each in operations))
        tokens.add(("completion", name), sum(each.completion_tokens.sum for each in operations))
        tokens.add(("cached", name), route.cached_tokens)
        retries.add((name,), route.retries)
        resends.add((name,), route.resends)
        in_flight.add((name,), route.in_flight)
        waiting.add((name,), route.waiting)
    yield from (requests, tokens, retries, resends, in_flight, waiting)


def _times(routes: dict[str, RouteStats]) -> Iterable[Family]:
    overhead = histogram(
        "cortex_gateway_overhead_seconds",
        "Time in the gateway's own hands. request: from a request's last byte until it is sent on, unless a "
        "connection had to be made; answer: from the engine's last byte to ours.",
        counted.OVERHEAD_SECONDS,
        _ROUTE,
        "side",
    )
    queue = histogram(
        "cortex_gateway_queue_seconds",
        "How long requests that had to wait for a slot did, with or without getting one.",
        counted.QUEUE_SECONDS,
        _ROUTE,
    )
    for name, route in routes.items():
        overhead.add((name, "request"), *route.overhead.values())
        overhead.add((name, "answer"), *route.answer_overhead.values())
        queue.add((name,), *route.queue.values())
    yield from (overhead, queue)


def _endpoints(routes: dict[str, RouteStats], now: float) -> Iterable[Family]:
    labels = ("instance", _ROUTE)
    requests = counter(
        "cortex_gateway_endpoint_requests",
        "Attempts that ended on an endpoint; of the instance with the empty name: on those that left.",
        *labels,
        "result",
    )
    ejections = counter(
        "cortex_gateway_endpoint_ejections", "How often an endpoint was passed over for a while.", *labels
    )
    outstanding = gauge(
        "cortex_gateway_endpoint_outstanding_requests", "Requests on an endpoint now.", *labels
    )
    state = gauge(
        "cortex_gateway_endpoint_state",
        "Breaker of an endpoint: 1 for the state it is in (over several processes: how many see it so).",
        *labels,
        "state",
    )
    for name, route in routes.items():
        # An instance whose address has changed is there twice, until the requests on the old one end.
        by_instance: dict[str, list[Watched]] = {}
        for endpoint in route.endpoints():
            by_instance.setdefault(endpoint.instance, []).append(endpoint)
        for instance, endpoints in by_instance.items():
            key = (instance, name)
            seen = counted.EndpointCounts()
            for endpoint in endpoints:
                seen.take(endpoint)
            _add_counts(requests, ejections, key, seen)
            outstanding.add(key, sum(endpoint.outstanding for endpoint in endpoints))
            now_is = _state(endpoints[-1], now)
            for each in ("closed", "half_open", "open"):
                state.add((*key, each), each == now_is)
        if route.left.any:
            _add_counts(requests, ejections, ("", name), route.left)
    yield from (requests, ejections, outstanding, state)


def _add_counts(
    requests: Family, ejections: Family, key: tuple[str, str], seen: counted.EndpointCounts
) -> None:
    requests.add((*key, "success"), seen.successes)
    requests.add((*key, "failure"), seen.failures)
    requests.add((*key, "connect_failure"), seen.connect_failures)
    ejections.add(key, seen.ejections)


def _state(endpoint: Watched, now: float) -> str:
    if endpoint.ejected_until > now:
        return "open"
    return "half_open" if endpoint.failures else "closed"


def metering(meter: MeterState) -> Iterable[Family]:
    """The meter's own."""
    spooled = gauge("cortex_gateway_journal_bytes", "Usage that the bus does not have yet.")
    spooled.add((), meter.journal_bytes)
    uncounted = gauge(
        "cortex_gateway_usage_uncounted_bytes",
        "Usage that the bus has taken, kept in the journal until it is counted.",
    )
    uncounted.add((), meter.uncounted_bytes)
    lost = counter("cortex_gateway_usage_lost_records", "Usage records lost: no room on disk.")
    lost.add((), meter.records_lost)
    sent = counter("cortex_gateway_usage_sent_records", "Usage records the bus has taken.")
    sent.add((), meter.records_sent)
    yield from (spooled, uncounted, lost, sent)


def loop_lag(seconds: float) -> Iterable[Family]:
    """How late the event loop was at worst."""
    lag = gauge(
        "cortex_gateway_loop_lag_max_seconds",
        "How late the event loop ran its timers at worst, in the last half to whole minute.",
        over="max",
    )
    lag.add((), seconds)
    yield lag


@cache
def _process() -> ProcessCollector:
    return ProcessCollector(registry=None)


def process() -> Iterable[Family]:
    """What runs, and what it uses of its machine, by Prometheus' usual names."""
    build = gauge("cortex_gateway_build_info", "What runs.", "form", "python", "version", over="max")
    form = "compiled" if NATIVE else "interpreted"
    build.add((form, platform.python_version(), version("cortex-gateway")), 1)
    yield build
    for metric in _process().collect():
        kind = "counter" if metric.type == "counter" else "gauge"
        over = "min" if metric.name in ("process_start_time_seconds", "process_max_fds") else "sum"
        family = Family(metric.name, kind, metric.documentation, over=over)
        for sample in metric.samples:
            family.add((), sample.value)
        yield family
