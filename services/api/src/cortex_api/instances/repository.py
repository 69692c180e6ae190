"""SQL of instances."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.db.tables import Instance, Model


async def of_models(session: AsyncSession, model_ids: Iterable[int]) -> dict[int, list[Instance]]:
    """Instances by model, replicas in order."""
    ids = list(model_ids)
    found: dict[int, list[Instance]] = defaultdict(list)
    if ids:
        statement = select(Instance).where(col(Instance.model_id).in_(ids))
        for row in await session.exec(statement.order_by(col(Instance.ordinal), col(Instance.id))):
            found[row.model_id].append(row)
    return found


async def page(
    session: AsyncSession, *, node: str | None, model_id: int | None, after: str, limit: int
) -> Sequence[tuple[Instance, Model]]:
    """Instances with their models in the order of ids, after an id."""
    statement = select(Instance, Model).join(Model, col(Model.id) == col(Instance.model_id))
    if node is not None:
        statement = statement.where(Instance.node == node)
    if model_id is not None:
        statement = statement.where(Instance.model_id == model_id)
    statement = statement.where(col(Instance.id) > after).order_by(col(Instance.id)).limit(limit)
    return (await session.exec(statement)).all()


async def find(session: AsyncSession, instance_id: str) -> tuple[Instance, Model] | None:
    """An instance and its model."""
    statement = select(Instance, Model).join(Model, col(Model.id) == col(Instance.model_id))
    return (await session.exec(statement.where(Instance.id == instance_id))).one_or_none()


async def on_node(session: AsyncSession, node: str) -> Sequence[tuple[Instance, Model]]:
    """All instances placed on a node, with their models."""
    statement = select(Instance, Model).join(Model, col(Model.id) == col(Instance.model_id))
    return (await session.exec(statement.where(Instance.node == node).order_by(col(Instance.id)))).all()


async def by_node(session: AsyncSession) -> dict[str, list[tuple[Instance, Model]]]:
    """All instances with their models, by node."""
    statement = select(Instance, Model).join(Model, col(Model.id) == col(Instance.model_id))
    found: dict[str, list[tuple[Instance, Model]]] = defaultdict(list)
    for instance, model in await session.exec(statement.order_by(col(Instance.id))):
        found[instance.node].append((instance, model))
    return found


async def promised(session: AsyncSession, *, except_model: int) -> Sequence[Instance]:
    """Instances of all other models: what they hold, or will."""
    return (await session.exec(select(Instance).where(Instance.model_id != except_model))).all()
