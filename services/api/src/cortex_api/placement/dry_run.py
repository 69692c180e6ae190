"""dry_run(): what starting a model would do, without doing it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cortex_shared.contracts.base import content_hash
from cortex_shared.contracts.observed import Reason
from cortex_shared.contracts.plan import Plan
from cortex_shared.contracts.routes import ExternalEndpoint

from cortex_api.engines import engine_of
from cortex_api.engines.base import Estimate, ModelSpec, Slot
from cortex_api.placement.facts import NodeFacts
from cortex_api.placement.place import place


@dataclass(frozen=True)
class DryReplica:
    """One replica as it would be started."""

    node: str
    gpus: tuple[str, ...]
    plan: Plan
    plan_hash: str
    estimate: Estimate


@dataclass(frozen=True)
class DryRun:
    """Where the replicas would go, why other nodes take none, and what stands in the way.

    `plan` is the exact plan of the first replica, or, where none can be placed, of a host without GPUs.
    """

    replicas: tuple[DryReplica, ...]
    plan: Plan | None
    estimate: Estimate
    refusals: Mapping[str, Reason]
    reason: Reason | None
    external: tuple[ExternalEndpoint, ...] = ()


def dry_run(
    spec: ModelSpec,
    nodes: Sequence[NodeFacts],
    existing: Mapping[str, Sequence[int]] | None = None,
) -> DryRun:
    """Check, place and compile as a start would; raises InvalidInput when the settings do not fit."""
    engine = engine_of(spec.engine_type)
    engine.check(spec)
    if engine.program is None:
        estimate = engine.estimate(spec, None, 0)
        return DryRun((), None, estimate, {}, None, tuple(engine.external(spec)))
    placement = place(engine, spec, max(1, spec.replicas), nodes, existing)
    replicas: list[DryReplica] = []
    for placed in placement.placed:
        plan = engine.plan(spec, placed.slot)
        replicas.append(DryReplica(placed.node, placed.gpus, plan, content_hash(plan), placed.estimate))
    plan = replicas[0].plan if replicas else engine.plan(spec, Slot())
    estimate = replicas[0].estimate if replicas else engine.estimate(spec, None, 0)
    return DryRun(tuple(replicas), plan, estimate, placement.refusals, placement.reason)
