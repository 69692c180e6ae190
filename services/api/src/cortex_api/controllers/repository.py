"""SQL of the controllers. Only here are instances and the fleet's epochs written."""

from collections.abc import Sequence
from typing import Any, cast

from cortex_shared.clock import utc_now
from cortex_shared.contracts.observed import Reason
from cortex_shared.contracts.plan import Plan
from cortex_shared.contracts.usage import RequestUsage
from cortex_shared.errors import InvalidInput, Unavailable
from sqlalchemy import ColumnElement, delete, func, insert, or_, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.controllers.decide import Decision
from cortex_api.controllers.rows import FleetRow, InstanceRow, ModelRow, NodeRow
from cortex_api.db.tables import Fleet, Instance, Model, Node, Usage
from cortex_api.models.repository import spec_of

# What a column of type integer holds.
INTEGER_MAX = 2**31 - 1


async def fleet(session: AsyncSession) -> FleetRow:
    """The fleet's row; raises Unavailable before the database is prepared."""
    row = (await session.exec(select(Fleet))).one_or_none()
    if row is None:
        raise Unavailable("the database has no fleet yet", code="postgres.not_prepared")
    return FleetRow(row.fleet, row.manifest_epoch, row.routes_epoch)


async def model(session: AsyncSession, model_id: int, *, lock: bool = False) -> ModelRow | None:
    """One model; locked until the end of the transaction if asked, which guards its instances, too."""
    statement = select(Model).where(Model.id == model_id)
    if lock:
        statement = statement.with_for_update()
    row = (await session.exec(statement)).one_or_none()
    return None if row is None else _model(row)


async def models(session: AsyncSession) -> list[ModelRow]:
    """Models that want something: running ones, those being deleted, and those with instances."""
    return [_model(row) for row in await session.exec(select(Model).where(_wanting()))]


async def model_ids(session: AsyncSession) -> list[int]:
    """The ids of those models."""
    found = await session.exec(select(Model.id).where(_wanting()))
    return [model_id for model_id in found if model_id is not None]


def _wanting() -> ColumnElement[bool]:
    placed = select(Instance.model_id)
    return or_(col(Model.desired_state) == "running", col(Model.deleting), col(Model.id).in_(placed))


async def instances(session: AsyncSession, model_id: int | None = None) -> list[InstanceRow]:
    """Instances of a model, or of all, by model and ordinal."""
    statement = select(Instance, Model.name, Model.served_model_name).join(
        Model, col(Model.id) == col(Instance.model_id)
    )
    if model_id is not None:
        statement = statement.where(Instance.model_id == model_id)
    statement = statement.order_by(
        col(Instance.model_id), col(Instance.ordinal), col(Instance.node), col(Instance.id)
    )
    return [_instance(row, name, served) for row, name, served in await session.exec(statement)]


async def nodes(session: AsyncSession) -> dict[str, NodeRow]:
    """What administrators say of each node."""
    rows = await session.exec(select(Node))
    return {row.name: NodeRow(row.name, row.cordoned, dict(row.labels)) for row in rows}


async def apply(session: AsyncSession, model_id: int, decision: Decision) -> int | None:
    """Write a decision in the transaction that read, and locked, the model.

    Returns the new manifest epoch if any node's set of instances changes.
    """
    if decision.insert:
        await session.exec(insert(Instance), params=[_values(row) for row in decision.insert])
    for old, new in decision.update:
        changed = _values(new)
        del changed["id"], changed["created_at"]
        await session.exec(update(Instance).where(col(Instance.id) == old.id).values(changed))
    if decision.delete:
        ids = [row.id for row in decision.delete]
        await session.exec(delete(Instance).where(col(Instance.id).in_(ids)))
    epoch = await _next_epoch(session) if decision.changes_manifest else None
    if decision.delete_model:
        await session.exec(delete(Model).where(col(Model.id) == model_id))
    return epoch


async def raise_manifest_epoch(session: AsyncSession, seen: int) -> int:
    """A manifest epoch above the fleet's and above one that was seen out there; returns it."""
    highest = func.greatest(col(Fleet.manifest_epoch), seen)
    statement = update(Fleet).values(manifest_epoch=highest + 1).returning(col(Fleet.manifest_epoch))
    return int((await session.exec(statement)).scalar_one())


async def raise_routes_epoch(session: AsyncSession, seen: int) -> int:
    """A routes epoch above the fleet's and above one that was seen out there; returns it."""
    highest = func.greatest(col(Fleet.routes_epoch), seen)
    statement = update(Fleet).values(routes_epoch=highest + 1).returning(col(Fleet.routes_epoch))
    return int((await session.exec(statement)).scalar_one())


async def reserve_model_ids(session: AsyncSession, highest: int) -> None:
    """Let the ids of models that are created from now on be above this one."""
    raise_ = text(
        "SELECT setval('models_id_seq', :highest) FROM models_id_seq"
        " WHERE last_value < :highest OR (last_value = :highest AND NOT is_called)"
    )
    await (await session.connection()).execute(raise_, {"highest": highest})


async def raise_keyring_version(session: AsyncSession, seen: int) -> None:
    """A keyring version above the fleet's and above one that Redis had."""
    highest = func.greatest(col(Fleet.keyring_version), seen)
    await session.exec(update(Fleet).values(keyring_version=highest + 1))


async def heard_of(session: AsyncSession, names: Sequence[str]) -> None:
    """Make rows of nodes that were heard for the first time."""
    now = utc_now()
    rows: list[dict[str, Any]] = [
        {"name": name, "labels": {}, "cordoned": False, "first_heard_at": now} for name in names
    ]
    statement = upsert(Node).values(rows)
    await session.exec(
        statement.on_conflict_do_update(
            index_elements=["name"],
            set_={
                "first_heard_at": func.coalesce(col(Node.first_heard_at), statement.excluded.first_heard_at)
            },
        )
    )


async def secrets_of(session: AsyncSession, instance: str, node: str) -> tuple[Plan, bytes | None] | None:
    """The plan and the encrypted Hugging Face token of an instance placed on that node, None if it is not."""
    statement = (
        select(Instance, Model.hf_token_encrypted)
        .join(Model, col(Model.id) == col(Instance.model_id))
        .where(Instance.id == instance, Instance.node == node)
    )
    found = (await session.exec(statement)).one_or_none()
    return None if found is None else (Plan.model_validate(found[0].plan), found[1])


async def count_usage(session: AsyncSession, gateway: str, records: Sequence[RequestUsage]) -> None:
    """Insert records that are not there yet; the request id makes it exact."""
    rows = [_fitting({**record.model_dump(), "gateway": gateway}) for record in records]
    await session.exec(upsert(Usage).on_conflict_do_nothing(index_elements=["request_id"]), params=rows)


def _fitting(row: dict[str, Any]) -> dict[str, Any]:
    """A row as Postgres takes it: what an engine or a client said of itself must not lose the request."""
    fitting = dict(row)
    for name, value in row.items():
        if isinstance(value, str):
            fitting[name] = value.replace("\0", "")
        elif isinstance(value, int) and not isinstance(value, bool):
            fitting[name] = max(-INTEGER_MAX, min(INTEGER_MAX, value))
    return fitting


async def _next_epoch(session: AsyncSession) -> int:
    return await raise_manifest_epoch(session, 0)


def _model(row: Model) -> ModelRow:
    assert row.id is not None
    spec, unreadable = None, None
    try:
        spec = spec_of(row)
    except InvalidInput as error:
        unreadable = Reason(code=error.code, message=error.message, remedy=error.remedy)
    return ModelRow(
        id=row.id,
        name=row.name,
        served_model_name=row.served_model_name,
        running=row.desired_state == "running",
        deleting=row.deleting,
        generation=row.generation,
        replicas=row.replicas,
        created_at=row.created_at,
        spec=spec,
        unreadable=unreadable,
        endpoint_keys=dict(row.endpoint_keys),
    )


def _instance(row: Instance, name: str, served: str) -> InstanceRow:
    return InstanceRow(
        id=row.id,
        model_id=row.model_id,
        model=name,
        served_model_name=served,
        node=row.node,
        ordinal=row.ordinal,
        gpus=tuple(row.gpus),
        desired=cast("Any", row.desired),
        generation=row.generation,
        model_generation=row.model_generation,
        plan=Plan.model_validate(row.plan),
        plan_hash=row.plan_hash,
        memory_mib=row.memory_mib,
    )


def _values(row: InstanceRow) -> dict[str, Any]:
    now = utc_now()
    return {
        "id": row.id,
        "model_id": row.model_id,
        "node": row.node,
        "ordinal": row.ordinal,
        "gpus": list(row.gpus),
        "desired": row.desired,
        "generation": row.generation,
        "model_generation": row.model_generation,
        "plan": row.plan.model_dump(mode="json"),
        "plan_hash": row.plan_hash,
        "memory_mib": row.memory_mib,
        "created_at": now,
        "changed_at": now,
    }
