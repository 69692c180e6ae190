"""What an engine says of itself at its metrics path, by the names that its plan gives."""

import re
from dataclasses import dataclass

from cortex_shared.contracts.plan import MetricNames

from cortex_node_agent import probe

_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)")
_BYTES_MAX = 8 << 20
_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class Numbers:
    """Summed over labels (a mean for the ratio); None where the engine says nothing."""

    requests_running: float | None = None
    requests_waiting: float | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    kv_cache_usage_ratio: float | None = None


def has_any(names: MetricNames) -> bool:
    """Whether the plan names a metric at all."""
    return any(
        (
            names.requests_running,
            names.requests_waiting,
            names.prompt_tokens_total,
            names.generation_tokens_total,
            names.kv_cache_usage_ratio,
        )
    )


async def read(names: MetricNames, host: str, port: int, bearer: str | None) -> Numbers | None:
    """Ask the engine; None when it does not answer, or the plan names no metrics."""
    if not has_any(names):
        return None
    answer = await probe.get(
        host,
        port,
        names.path,
        timeout_seconds=_TIMEOUT_SECONDS,
        bearer=bearer,
        body_bytes_max=_BYTES_MAX,
    )
    if answer is None or answer.status != 200:
        return None
    return parse(answer.body.decode(errors="replace"), names)


def parse(text: str, names: MetricNames) -> Numbers:
    """Read Prometheus' text format; lines that are not understood are passed over."""
    wanted = {name for name in names.model_dump(exclude={"path"}).values() if name}
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or match.group(1) not in wanted:
            continue
        try:
            found.setdefault(match.group(1), []).append(float(match.group(2)))
        except ValueError:
            continue

    def total(name: str | None) -> float | None:
        return sum(found[name]) if name in found else None

    ratio = found.get(names.kv_cache_usage_ratio or "")
    return Numbers(
        requests_running=total(names.requests_running),
        requests_waiting=total(names.requests_waiting),
        prompt_tokens_total=total(names.prompt_tokens_total),
        generation_tokens_total=total(names.generation_tokens_total),
        kv_cache_usage_ratio=sum(ratio) / len(ratio) if ratio else None,
    )
