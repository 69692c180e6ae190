"""Whether an engine that has work to do moves at all: counters, CPU time or GPU time."""

from dataclasses import dataclass

from cortex_node_agent.engine_metrics import Numbers

# Threads that only wait use less than a hundredth of a core; a prefill keeps at least one core or GPU busy.
_CPU_CORES_MIN = 0.02
_GPU_RATIO_MIN = 0.05


@dataclass(frozen=True)
class Look:
    """One look at an engine. `at`: monotonic seconds; `answers`: whether its probe passes."""

    at: float
    numbers: Numbers | None
    cpu_seconds: float | None
    gpu_ratio: float | None
    answers: bool


class Progress:
    """Of one run. Work is what the metrics say is running or waiting; one that does not answer has work."""

    def __init__(self) -> None:
        self._before: Look | None = None
        self._still_since: float | None = None

    def still_seconds(self, look: Look) -> float:
        """How long it has had work and not moved, as of this look; 0 when it moves or has nothing to do."""
        before, self._before = self._before, look
        if before is None or not _has_work(look) or _moved(before, look):
            self._still_since = None
            return 0.0
        if self._still_since is None:
            # What it did before it had work says nothing: the looks may lie far apart.
            self._still_since = before.at if _has_work(before) else look.at
        return look.at - self._still_since


def _has_work(look: Look) -> bool:
    if look.numbers is None:
        return not look.answers
    return bool((look.numbers.requests_running or 0) + (look.numbers.requests_waiting or 0))


def _moved(before: Look, now: Look) -> bool:
    if now.cpu_seconds is None or before.cpu_seconds is None:
        return True  # nothing is known: no reason to end it
    if now.cpu_seconds - before.cpu_seconds > _CPU_CORES_MIN * (now.at - before.at):
        return True
    if (now.gpu_ratio or 0) > _GPU_RATIO_MIN:
        return True
    if before.numbers is None or now.numbers is None:
        return False
    return (before.numbers.prompt_tokens_total, before.numbers.generation_tokens_total) != (
        now.numbers.prompt_tokens_total,
        now.numbers.generation_tokens_total,
    )
