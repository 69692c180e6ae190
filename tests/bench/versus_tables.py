"""Tables of the comparison with other gateways: what was measured, its ratios, and the bars beside them."""

from tests.bench.tables import Row, Section, table
from tests.bench.versus import DIRECT, INTERPRETED, LOADS, OURS, Results


def section(results: Results) -> Section:
    """Everything of it."""
    own = (OURS, INTERPRETED)
    others = any(each.process is not None and each.name not in own for each in results.contenders)
    text = [absolute(results), rates(results), spread(results)]
    if results.latency:
        text.append(added_latency(results))
    plain: dict[str, object] = {
        name: getattr(results, name) for name in ("cost", "rate", "latency", "idle", "memory_mib")
    }
    plain["contenders"] = [f"{each.name} {each.version}".strip() for each in results.contenders]
    return Section("Against other gateways", ratio_rows(results) if others else [], text, plain)


def absolute(results: Results) -> str:
    """Medians over the rounds, of every gateway."""
    units = [f"{load.name}, µs/{load.unit}" for load in LOADS if load.name in results.cost]
    rows: list[list[str]] = []
    for each in results.contenders:
        row = [f"{each.name} {each.version}".strip()]
        row += [_number(results.median(costs, each.name)) for costs in results.cost.values()]
        for which in (0, 1):
            values = results.latency.get(each.name, [])
            told = sorted(value[which] for value in values if value is not None)
            row.append(f"{told[len(told) // 2] * 1e3:.2f}" if told else "-")
        idle, memory = results.idle.get(each.name), results.memory_mib.get(each.name)
        row += ["-" if idle is None else f"{idle:.2%}", "-" if memory is None else f"{memory:.0f}"]
        rows.append(row)
    return table(("gateway", *units, "p50 ms", "p99 ms", "at rest", "MiB"), rows)


def rates(results: Results) -> str:
    """Requests or events per second, medians."""
    rows = [
        [each.name, *(_number(results.median(rate, each.name)) for rate in results.rate.values())]
        for each in results.contenders
    ]
    return table(("per second", *results.rate), rows)


def ratio_rows(results: Results) -> list[Row]:
    """Every ratio that has a bar."""
    routers = [each.name for each in results.contenders if each.rust]
    rows: list[Row] = []

    def add(figure: str, load: str, others: list[str], bar: float, aim: float) -> None:
        other = results.cheapest(load, others)
        value = None if other is None else results.ratio(load, other)
        least = None if other is None else results.least_ratio(load, other)
        note = "" if least is None else f" ({least:.2f})"
        rows.append(Row(f"{figure}, against {other or 'a Rust router'}", value, bar, aim, note=note))

    add("CPU per request, 300 B", "300 B", routers, 0.70, 0.45)
    add("CPU per request, 32 KB", "32 KB", routers, 0.50, 0.35)
    add("CPU per request, 256 KB", "256 KB", routers, 0.50, 0.35)
    add("CPU per event, 100 streams at 50/s", "paced", routers, 0.95, 0.85)
    add("CPU per event, flat out", "flat out", routers, 0.7, 0.4)
    add("CPU per event, flat out", "flat out", ["nginx"], 1.2, 0.6)
    add("CPU per request, 300 B", "300 B", ["nginx"], 2.3, 1.5)
    add("CPU per request, 32 KB", "32 KB", ["nginx"], 2.3, 1.5)
    for others, who in ((routers, "a Rust router"), (["nginx"], "nginx")):
        for which, name, bar, aim in ((0, "p50", 1.0, 0.8), (1, "p99", 1.2, 0.8)):
            other = results.best_added(others, which)
            value = None if other is None else results.added_ratio(other, which)
            rows.append(Row(f"added latency at 300/s, {name}, against {other or who}", value, bar, aim))
    return rows


def added_latency(results: Results) -> str:
    """Milliseconds that each gateway adds at the steady rate, and the spread over the rounds."""
    rows: list[list[str]] = []
    for each in results.contenders:
        if each.name == DIRECT or not any(results.latency.get(each.name, [])):
            continue
        row = [each.name]
        for which in (0, 1):
            values = sorted(value * 1e3 for value in results.added(each.name, which) if value is not None)
            row.append(
                f"{values[len(values) // 2]:.3f} ({values[0]:.3f} to {values[-1]:.3f})" if values else "-"
            )
        rows.append(row)
    return table(("adds at 300/s, ms", "p50", "p99"), rows)


def spread(results: Results) -> str:
    """Our cost in each round."""
    rows = [
        [load, *(_number(value) for value in costs.get(OURS, []))] for load, costs in results.cost.items()
    ]
    count = max((len(row) for row in rows), default=1) - 1
    return table(("cortex, µs, by round", *(str(number + 1) for number in range(count))), rows)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
