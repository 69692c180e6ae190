"""A model's state, from what is wanted and what its instances are doing. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from cortex_shared.contracts.external import EndpointObserved, state_of_all
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
    external: Sequence[EndpointObserved] | None = None,
) -> tuple[ModelState, Reason | None]:
    """State and why. `problem`: why the last placement failed. `external`: who serves it if not Cortex."""
    if desired_state == "stopped":
        alive = any(instance.phase not in ("stopped", "failed") for instance in instances)
        return ("stopping" if alive else "stopped"), None
    if external is not None:
        return _state_of_others(external)
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


def _state_of_others(endpoints: Sequence[EndpointObserved]) -> tuple[ModelState, Reason | None]:
    state = state_of_all([endpoint.state for endpoint in endpoints])
    # Those that do not run say more than the warnings of those that do.
    told = sorted(endpoints, key=lambda endpoint: endpoint.state == "running")
    reason = next((endpoint.reason for endpoint in told if endpoint.reason is not None), None)
    return cast("ModelState", state), reason


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
