"""A model's state, from what is wanted and what its instances are doing. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cortex_shared.contracts.observed import Phase, Reason

type ModelState = Literal["stopped", "starting", "loading", "running", "degraded", "stopping", "failed"]

_ALIVE: tuple[Phase, ...] = ("ready", "stuck", "unready")


@dataclass(frozen=True)
class Replica:
    """One instance as far as the state depends on it. `current`: it runs what is wanted now."""

    phase: Phase
    current: bool = True
    reason: Reason | None = None


def state_of(
    desired_state: str,
    replicas: int,
    instances: Sequence[Replica],
    problem: Reason | None,
    *,
    external: bool = False,
) -> tuple[ModelState, Reason | None]:
    """State and why. `problem`: why the last placement failed. `external`: Cortex runs nothing for it."""
    if desired_state == "stopped":
        alive = any(instance.phase not in ("stopped", "failed") for instance in instances)
        return ("stopping" if alive else "stopped"), None
    if external:
        return "running", None
    if replicas == 0:
        return "stopped", Reason(
            code="no_replicas", message="replicas is 0", remedy="set replicas to 1 or more"
        )
    ready = sum(instance.phase == "ready" and instance.current for instance in instances)
    if ready >= replicas:
        return "running", None
    if any(instance.phase in _ALIVE for instance in instances):
        return "degraded", _why_degraded(ready, replicas, instances, problem)
    phases = {instance.phase for instance in instances}
    if "loading" in phases:
        return "loading", None
    if phases & {"placed", "fetching", "starting"}:
        # A placement problem stands beside replicas that do start, and is worth saying.
        return "starting", problem or _first_reason(instances)
    if "failed" in phases or problem is not None:
        failed = [instance for instance in instances if instance.phase == "failed"]
        return "failed", _first_reason(failed) or problem
    return "starting", None


def _why_degraded(
    ready: int, replicas: int, instances: Sequence[Replica], problem: Reason | None
) -> Reason | None:
    worse = [instance for instance in instances if instance.phase != "ready"]
    found = _first_reason(worse) or problem
    if found is not None:
        return found
    old = sum(instance.phase == "ready" and not instance.current for instance in instances)
    message = f"{ready} of {replicas} replicas are ready"
    if old:
        message += f"; {old} still run what was wanted before"
    return Reason(code="replicas_missing", message=message)


def _first_reason(instances: Sequence[Replica]) -> Reason | None:
    return next((instance.reason for instance in instances if instance.reason is not None), None)
