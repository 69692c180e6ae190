"""The fleet at a glance: counts, and which parts are well."""

from collections import Counter
from importlib.metadata import version

import anyio
from cortex_shared.clock import utc_now
from cortex_shared.errors import Unavailable
from cortex_shared.routing_store import RoutingStore
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.db.tables import Fleet
from cortex_api.instances import repository as instances_repository
from cortex_api.models import repository as models_repository
from cortex_api.models.service import views
from cortex_api.models.state import ModelState
from cortex_api.state import AppState
from cortex_api.status.schemas import PartHealth, Status

_MODELS_MAX = 100_000
_REDIS_SECONDS = 1.0


async def redis_problem(state: AppState) -> str | None:
    """What is wrong with Redis; None: it answers."""
    try:
        with anyio.fail_after(_REDIS_SECONDS):
            await RoutingStore(state.redis).version()
    except Unavailable as error:
        return error.message
    except TimeoutError:
        return "Redis did not answer in time"
    return None


async def status(state: AppState, session: AsyncSession, redis: str | None) -> Status:
    """Counts by state, and the parts' health; `redis` is `redis_problem`, asked before the transaction."""
    fleet = (await session.exec(select(Fleet.fleet))).one()
    rows = await models_repository.page(
        session, engine_type=None, task=None, q=None, after=0, limit=_MODELS_MAX
    )
    placed = await instances_repository.of_models(session, [models_repository.model_id(row) for row in rows])
    maker = views(state)
    models: Counter[ModelState] = Counter(
        maker.state(row, placed[models_repository.model_id(row)])[0] for row in rows
    )
    nodes = state.observations.nodes()
    verdicts = [state.observations.verdict(name) for name in nodes]
    lease = state.observations.lease()
    held = lease is not None and lease.expires_at > utc_now()
    problems = {
        **state.readiness(),
        "redis": redis,
        "monitor": None if held else "no monitor is in charge",
    }
    parts = {name: PartHealth(ok=problem is None, problem=problem) for name, problem in problems.items()}
    return Status(
        fleet=fleet,
        ok=all(part.ok for part in parts.values()),
        parts=parts,
        monitor=lease.holder if lease is not None and held else None,
        leader=state.controllers.leader,
        process=state.process,
        started_at=state.started_at,
        models=dict(models),
        nodes=dict(Counter(verdict.verdict for verdict in verdicts if verdict is not None)),
        instances=sum(len(found) for found in placed.values()),
        versions={
            "api": version("cortex-api"),
            **{f"node/{name}": node.agent_version for name, node in nodes.items()},
        },
    )
