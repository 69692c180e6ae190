"""An instance for people: the row of what is wanted, joined with what its node says of it."""

from cortex_shared.contracts.observed import InstanceObserved, Phase, Reason
from cortex_shared.contracts.plan import Plan

from cortex_api.db.tables import Instance, Model
from cortex_api.engines import explain_exit
from cortex_api.instances.schemas import InstanceBrief, InstanceOut
from cortex_api.models.state import Replica
from cortex_api.observations import Observations


def phase_of(
    row: Instance, engine_type: str, observed: InstanceObserved | None, *, node_lost: bool
) -> tuple[Phase, Reason | None]:
    """Phase and reason of an instance. Pure."""
    lost = Reason(
        code="node_lost",
        message=f"node {row.node} does not answer, and neither do its engines",
        remedy=f"look after host {row.node} and its agent; cordon or delete the node to place it elsewhere",
    )
    if observed is None:
        if row.desired == "stop":
            return "stopping", lost if node_lost else None
        return "placed", lost if node_lost else None
    phase, reason = observed.phase, observed.reason
    # Of a failure for another reason (a file that has gone, a start that took too long) the last end, which
    # may be an older one, says nothing.
    if phase == "failed" and observed.last_exit is not None and (reason is None or reason.code == "exited"):
        reason = explain_exit(engine_type, observed.last_exit) or reason
    if row.desired == "stop" and phase not in ("stopped", "failed"):
        return "stopping", reason
    if node_lost and phase not in ("stopped", "failed"):
        return "unready", lost
    return phase, reason


def is_current(row: Instance, model: Model, observed: InstanceObserved | None) -> bool:
    """Whether what runs is what is wanted now."""
    return (
        observed is not None
        and row.desired == "run"
        and observed.generation >= row.generation
        and row.model_generation >= model.generation
    )


class InstanceViews:
    """Makes answers out of rows."""

    def __init__(self, observations: Observations) -> None:
        self._observations = observations

    def _seen(self, row: Instance, model: Model) -> tuple[InstanceObserved | None, Phase, Reason | None]:
        observed = self._observations.instance(row.node, row.id)
        verdict = self._observations.verdict(row.node)
        lost = verdict is not None and verdict.verdict == "lost"
        return observed, *phase_of(row, model.engine_type, observed, node_lost=lost)

    def replica(self, row: Instance, model: Model) -> Replica:
        """What the model's state depends on."""
        observed, phase, reason = self._seen(row, model)
        return Replica(phase, is_current(row, model, observed), reason)

    def brief(self, row: Instance, model: Model) -> InstanceBrief:
        """The short form."""
        observed, phase, reason = self._seen(row, model)
        return InstanceBrief(
            id=row.id,
            node=row.node,
            phase=phase,
            reason=reason,
            url=observed.url if observed else None,
            port=observed.port if observed else None,
            gpus=row.gpus,
            restarts=observed.restarts if observed else 0,
            progress_ratio=observed.progress_ratio if observed else None,
            generation=row.generation,
            generation_running=observed.generation if observed else None,
        )

    def full(self, row: Instance, model: Model, *, with_plan: bool = False) -> InstanceOut:
        """The long form."""
        observed = self._observations.instance(row.node, row.id)
        return InstanceOut(
            **self.brief(row, model).model_dump(),
            model_id=row.model_id,
            model=model.name,
            served_model_name=model.served_model_name,
            ordinal=row.ordinal,
            desired="stop" if row.desired == "stop" else "run",
            model_generation=row.model_generation,
            current=is_current(row, model, observed),
            since=observed.since if observed else None,
            pid=observed.pid if observed else None,
            container_name=str(row.plan.get("container_name", "")),
            next_try_at=observed.next_try_at if observed else None,
            started_at=observed.started_at if observed else None,
            ready_at=observed.ready_at if observed else None,
            last_exit=observed.last_exit if observed else None,
            memory_mib=row.memory_mib,
            plan_hash=row.plan_hash,
            plan_hash_running=observed.plan_hash if observed else None,
            created_at=row.created_at,
            changed_at=row.changed_at,
            plan=Plan.model_validate(row.plan) if with_plan else None,
        )
