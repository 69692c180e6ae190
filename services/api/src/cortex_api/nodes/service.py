"""What can be done with nodes."""

from collections.abc import Sequence
from datetime import timedelta

from cortex_shared.clock import utc_now
from cortex_shared.contracts.observed import NodeObserved
from cortex_shared.contracts.rpc import InspectReply, InspectRequest, node_rpc_subject
from cortex_shared.errors import Conflict, NotFound, Unavailable
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.audit import record
from cortex_api.auth.principals import Principal
from cortex_api.db.tables import Instance, Model, Node
from cortex_api.hints import Hints
from cortex_api.instances import repository as instances_repository
from cortex_api.instances.view import InstanceViews
from cortex_api.models import repository as models_repository
from cortex_api.nodes import repository
from cortex_api.nodes.schemas import (
    NodeCreate,
    NodeCreated,
    NodeInstance,
    NodeOut,
    NodePatch,
    PathFormat,
    PathReport,
)
from cortex_api.state import AppState

# A node that nobody keeps (no row) is shown this long after its last heart-beat.
_SHOWN = timedelta(minutes=10)
_INSPECT_SECONDS = 5.0


async def all_nodes(state: AppState, session: AsyncSession) -> list[NodeOut]:
    """Every node that is kept or heard of, by name."""
    rows = {row.name: row for row in await repository.all_nodes(session)}
    now = utc_now()
    heard = {name for name, seen in state.observations.nodes().items() if now - seen.at < _SHOWN}
    placed = await instances_repository.by_node(session)
    return [_out(state, name, rows.get(name), placed.get(name, [])) for name in sorted(rows.keys() | heard)]


async def show(state: AppState, session: AsyncSession, name: str) -> NodeOut:
    """One node. Raises NotFound."""
    row = await repository.find(session, name)
    if row is None and state.observations.node(name) is None:
        raise _not_found(name)
    return _out(state, name, row, await instances_repository.on_node(session, name))


async def invite(
    state: AppState, session: AsyncSession, hints: Hints, principal: Principal, body: NodeCreate
) -> NodeCreated:
    """Make credentials for a node, new or known. Raises Conflict where this API cannot sign any."""
    if state.authority is None:
        raise Conflict(
            "this API has no keys to sign NATS credentials with",
            code="nodes.no_authority",
            remedy="set CORTEX_NATS_AUTHORITY to the file of the fleet's signing keys, or make credentials"
            " with the NATS tools that your fleet uses",
        )
    row = await _row(state, session, body.name, make=True)
    row.invited_at = utc_now()
    row.labels = {**row.labels, **body.labels}
    session.add(row)
    credentials = state.authority.credentials(body.name, role="node")
    message = f"node {body.name} was invited"
    record(session, hints, principal, "node.invited", f"node/{body.name}", message, node=body.name)
    shown = _out(state, body.name, row, await instances_repository.on_node(session, body.name))
    return NodeCreated(**shown.model_dump(), credentials=credentials)


async def patch(
    state: AppState, session: AsyncSession, hints: Hints, principal: Principal, name: str, body: NodePatch
) -> NodeOut:
    """Change labels. Raises NotFound."""
    row = await _row(state, session, name)
    if "labels" in body.model_fields_set:
        merged: dict[str, str | None] = {} if body.labels is None else {**row.labels, **body.labels}
        row.labels = {label: value for label, value in merged.items() if value is not None}
    session.add(row)
    return await _changed(state, session, hints, principal, row, "node.changed", "was changed")


async def cordon(
    state: AppState, session: AsyncSession, hints: Hints, principal: Principal, name: str, *, cordoned: bool
) -> NodeOut:
    """Place nothing new there, or do again. Raises NotFound."""
    row = await _row(state, session, name)
    if row.cordoned == cordoned:
        return await show(state, session, name)
    row.cordoned = cordoned
    session.add(row)
    word = "cordoned" if cordoned else "uncordoned"
    return await _changed(state, session, hints, principal, row, f"node.{word}", f"was {word}")


async def delete(
    state: AppState, session: AsyncSession, hints: Hints, principal: Principal, name: str
) -> None:
    """Forget a node on which nothing is placed. Raises Conflict, NotFound."""
    row = await repository.find(session, name, lock=True)
    if row is None and state.observations.node(name) is None:
        raise _not_found(name)
    placed = await instances_repository.on_node(session, name)
    if placed:
        models = ", ".join(sorted({model.name for _, model in placed}))
        raise Conflict(
            f"{len(placed)} instances are placed on node {name} (of {models})",
            code="nodes.in_use",
            remedy="cordon it, stop these models or let them be placed elsewhere, then delete it",
        )
    if row is not None:
        await session.delete(row)
    message = f"node {name} was deleted"
    record(session, hints, principal, "node.deleted", f"node/{name}", message, node=name)
    hints.forgotten_nodes.add(name)


async def inspect(state: AppState, name: str, path: str, form: PathFormat) -> PathReport:
    """Ask a node about a file or folder. Raises Unavailable, NotFound, and what the node says."""
    if state.observations.node(name) is None:
        async with state.database.transaction() as session:
            if await repository.find(session, name) is None:
                raise _not_found(name)
    try:
        reply = await state.bus.ask(
            node_rpc_subject(name, "inspect"),
            InspectRequest(path=path, format=form),
            InspectReply,
            timeout_seconds=_INSPECT_SECONDS,
        )
    except Unavailable as error:
        raise Unavailable(
            f"node {name} did not answer",
            code="nodes.silent",
            remedy=f"see GET /nodes/{name}; look after its agent",
        ) from error
    return PathReport.model_validate(reply.model_dump())


async def _changed(
    state: AppState,
    session: AsyncSession,
    hints: Hints,
    principal: Principal,
    row: Node,
    action: str,
    did: str,
) -> NodeOut:
    message = f"node {row.name} {did}"
    record(session, hints, principal, action, f"node/{row.name}", message, node=row.name)
    for model_id in await models_repository.wanted_running(session):
        hints.model(model_id)
    return _out(state, row.name, row, await instances_repository.on_node(session, row.name))


async def _row(state: AppState, session: AsyncSession, name: str, *, make: bool = False) -> Node:
    """A node's row, locked; made for a node that is only heard of. Raises NotFound."""
    row = await repository.find(session, name, lock=True)
    if row is not None:
        return row
    seen = state.observations.node(name)
    if seen is None and not make:
        raise _not_found(name)
    return Node(name=name, first_heard_at=None if seen is None else utc_now())


def _not_found(name: str) -> NotFound:
    return NotFound(
        f"there is no node {name!r}", code="nodes.not_found", field="node", remedy="see GET /nodes"
    )


def _out(state: AppState, name: str, row: Node | None, placed: Sequence[tuple[Instance, Model]]) -> NodeOut:
    seen = state.observations.node(name)
    verdict = state.observations.verdict(name)
    views = InstanceViews(state.observations)
    instances = [
        NodeInstance(
            id=instance.id,
            model_id=instance.model_id,
            model=model.name,
            phase=views.brief(instance, model).phase,
        )
        for instance, model in placed
    ]
    known = {instance.id for instance, _ in placed}
    instances += [
        NodeInstance(
            id=found.instance, model_id=found.model_id, model=found.model, phase=found.phase, placed=False
        )
        for found in ([] if seen is None else seen.instances)
        if found.instance not in known and found.phase != "stopped"
    ]
    set_labels = {} if row is None else row.labels
    return NodeOut(
        name=name,
        verdict=None if verdict is None else verdict.verdict,
        verdict_since=None if verdict is None else verdict.since,
        evidence=[] if verdict is None else verdict.evidence,
        cordoned=row is not None and row.cordoned,
        labels={**({} if seen is None else seen.labels), **set_labels},
        labels_set=set_labels,
        invited_at=None if row is None else row.invited_at,
        first_heard_at=None if row is None else row.first_heard_at,
        last_heard_at=None if seen is None else seen.at,
        heartbeat_age_seconds=None if seen is None else _age(seen),
        instances=instances,
        **({} if seen is None else seen.model_dump(include=_SEEN)),
    )


_SEEN = {
    "address", "agent_version", "agent_started_at", "cpus", "cpu_used_ratio", "memory_total_mib",
    "memory_available_mib", "disk_free_mib", "gpus", "programs", "model_roots", "warnings",
}  # fmt: skip


def _age(seen: NodeObserved) -> float:
    # The node's clock may be ahead of ours.
    return max(0.0, round((utc_now() - seen.at).total_seconds(), 3))
