"""Dry runs: what starting a model would do, with nothing stored and nothing started."""

from cortex_shared.clock import utc_now
from cortex_shared.contracts.observed import Reason
from cortex_shared.contracts.plan import Plan
from cortex_shared.contracts.rpc import InspectReply
from pydantic import BaseModel, Field
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.engines import engine_of
from cortex_api.engines.base import Estimate, ModelSpec
from cortex_api.instances import repository as instances_repository
from cortex_api.models import repository
from cortex_api.models.doubts import doubts
from cortex_api.models.files import NODES_MAX, candidates, file_format, inspect_on
from cortex_api.models.flat import Document, parse_body
from cortex_api.models.repository import spec_of
from cortex_api.nodes import repository as nodes_repository
from cortex_api.placement import NodeFacts, Reserved, dry_run, node_facts
from cortex_api.state import AppState


class EstimateOut(BaseModel):
    """Memory of one replica, and why."""

    host_mib: int = Field(description="MiB of host memory.")
    gpu_mib: int = Field(description="MiB on each of its GPUs.")
    gpu_ratio: float | None = Field(description="Share of each GPU that the engine takes, where it does.")
    explanation: list[str]


class DryReplicaOut(BaseModel):
    """One replica as it would be started."""

    node: str
    gpus: list[str] = Field(description="UUIDs.")
    plan: Plan = Field(description="Exactly what the node would be told; the node fills the placeholders.")
    plan_hash: str
    estimate: EstimateOut


class DryEndpointOut(BaseModel):
    """A server that others run, as it would be routed to."""

    id: str
    url: str
    weight: float
    model: str | None = Field(description="The model's name there; null: the served name.")


class DryRun(BaseModel):
    """What a start would do."""

    replicas: list[DryReplicaOut]
    plan: Plan | None = Field(description="Plan of the first replica, or of a host without GPUs.")
    estimate: EstimateOut
    refusals: dict[str, Reason] = Field(description="Why nodes take none, by node.")
    reason: Reason | None = Field(description="Why not all replicas can be placed; null: they can.")
    external: list[DryEndpointOut] = Field(description="Endpoints that Cortex would route to.")
    warnings: list[str]


async def of_document(state: AppState, document: Document) -> DryRun:
    """A dry run of a body as create takes it. Raises InvalidInput."""
    return await _run(state, parse_body(document).spec(model_id=0))


async def of_model(state: AppState, ref: str) -> DryRun:
    """A dry run of a stored model. Raises NotFound, InvalidInput."""
    async with state.database.transaction() as session:
        spec = spec_of(await repository.get(session, ref))
    return await _run(state, spec)


async def _run(state: AppState, spec: ModelSpec) -> DryRun:
    files, warnings = await _files(state, spec)
    async with state.database.transaction() as session:
        nodes = await _nodes(state, session, spec, files)
        warnings += await doubts(session, spec)
    done = dry_run(spec, nodes)
    return DryRun(
        replicas=[
            DryReplicaOut(
                node=replica.node,
                gpus=list(replica.gpus),
                plan=replica.plan,
                plan_hash=replica.plan_hash,
                estimate=_estimate(replica.estimate),
            )
            for replica in done.replicas
        ],
        plan=done.plan,
        estimate=_estimate(done.estimate),
        refusals=dict(done.refusals),
        reason=done.reason,
        external=[
            DryEndpointOut(id=found.id, url=found.url, weight=found.weight, model=found.model)
            for found in done.external
        ],
        warnings=warnings,
    )


async def _files(state: AppState, spec: ModelSpec) -> tuple[dict[str, InspectReply], list[str]]:
    path = engine_of(spec.engine_type).file(spec)
    if path is None:
        return {}, []
    asked = candidates(state.observations, spec)[:NODES_MAX]
    replies = await inspect_on(state.bus, asked, path, file_format(spec, path))
    silent = [node for node in asked if node not in replies]
    warnings = [f"node {node} did not say whether it has {path}" for node in silent]
    for node, reply in sorted(replies.items()):
        if reply.problem is not None:
            warnings.append(f"{path} on node {node}: {reply.problem.message}")
    return replies, warnings


async def _nodes(
    state: AppState, session: AsyncSession, spec: ModelSpec, files: dict[str, InspectReply]
) -> list[NodeFacts]:
    """Every known node; what the model itself holds now counts as free."""
    rows = {row.name: row for row in await nodes_repository.all_nodes(session)}
    promised = [
        Reserved(row.id, row.node, row.memory_mib, tuple(row.gpus))
        for row in await instances_repository.promised(session, except_model=spec.id)
    ]
    found: list[NodeFacts] = []
    for name, observed in state.observations.nodes().items():
        row = rows.get(name)
        verdict = state.observations.verdict(name)
        found.append(
            node_facts(
                observed,
                now=utc_now(),
                verdict=None if verdict is None else verdict.verdict,
                cordoned=row is not None and row.cordoned,
                labels=None if row is None else row.labels,
                reserved=promised,
                file=files.get(name),
            )
        )
    return found


def _estimate(estimate: Estimate) -> EstimateOut:
    return EstimateOut(
        host_mib=estimate.host_mib,
        gpu_mib=estimate.gpu_mib,
        gpu_ratio=estimate.gpu_ratio,
        explanation=list(estimate.explanation),
    )
