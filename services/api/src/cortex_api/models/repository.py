"""SQL of models, and the row as engines, placement and controllers see it."""

from collections.abc import Sequence
from typing import cast

from cortex_shared.contracts.routes import RoutePolicy, Task
from cortex_shared.errors import InvalidInput, NotFound
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import bindparam, func, or_
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.db.tables import Model
from cortex_api.engines import parse_settings
from cortex_api.engines.base import Mode, ModelSpec, PlacementWish

_INTEGER_MAX = 2**31 - 1
_TASK: TypeAdapter[Task] = TypeAdapter(Task)
# Serialises everything that decides by which names models are served.
_NAMES_LOCK = 7_226_071_002


def spec_of(row: Model) -> ModelSpec:
    """A model's row, typed. Raises InvalidInput when its engine or its settings are no longer known."""
    assert row.id is not None
    try:
        task = _TASK.validate_python(row.task)
        placement = PlacementWish.model_validate(row.placement)
        policy = RoutePolicy.model_validate(row.policy)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidInput(
            f"the stored model is not one that this release knows: {first['msg']}",
            code="models.unreadable",
            field=".".join(str(part) for part in first["loc"]) or "task",
            remedy="run the release that stored it, or set the field anew",
        ) from error
    return ModelSpec(
        id=row.id,
        name=row.name,
        served_model_name=row.served_model_name,
        task=task,
        engine_type=row.engine_type,
        settings=parse_settings(row.engine_type, row.settings),
        aliases=tuple(row.aliases),
        engine_version=row.engine_version,
        engine_image=row.engine_image,
        mode=cast("Mode", row.mode),
        generation=row.generation,
        replicas=row.replicas,
        placement=placement,
        policy=policy,
        has_hf_token=row.hf_token_encrypted is not None,
    )


def model_id(row: Model) -> int:
    """The id of a stored row."""
    assert row.id is not None
    return row.id


async def find(session: AsyncSession, ref: str, *, lock: bool = False) -> Model | None:
    """A model by id (digits) or name; locked until the end of the transaction if asked."""
    statement = select(Model)
    if ref.isascii() and ref.isdigit():
        if int(ref) > _INTEGER_MAX:
            return None
        statement = statement.where(Model.id == int(ref))
    else:
        statement = statement.where(Model.name == ref)
    if lock:
        statement = statement.with_for_update()
    return (await session.exec(statement)).one_or_none()


async def get(session: AsyncSession, ref: str, *, lock: bool = False) -> Model:
    """As `find`; raises NotFound."""
    row = await find(session, ref, lock=lock)
    if row is None:
        raise NotFound(
            f"there is no model {ref!r}", code="models.not_found", field="model", remedy="see GET /models"
        )
    return row


async def page(
    session: AsyncSession,
    *,
    engine_type: str | None,
    task: str | None,
    q: str | None,
    after: int,
    limit: int,
) -> Sequence[Model]:
    """Models in the order of ids, after an id. `q` is a part of a name or served name."""
    statement = select(Model).where(col(Model.id) > after)
    if engine_type is not None:
        statement = statement.where(Model.engine_type == engine_type)
    if task is not None:
        statement = statement.where(Model.task == task)
    if q:
        statement = statement.where(
            or_(
                col(Model.name).icontains(q, autoescape=True),
                col(Model.served_model_name).icontains(q, autoescape=True),
            )
        )
    return (await session.exec(statement.order_by(col(Model.id)).limit(limit))).all()


async def name_taken(session: AsyncSession, name: str, *, except_id: int | None) -> bool:
    """Whether another model has this name."""
    statement = select(func.count()).select_from(Model).where(Model.name == name)
    if except_id is not None:
        statement = statement.where(Model.id != except_id)
    return (await session.exec(statement)).one() > 0


async def server_of(session: AsyncSession, names: Sequence[str], *, except_id: int | None) -> Model | None:
    """Another model, wanted running, that is served by one of these names.

    Holds a lock until the end of the transaction, so that two that begin at once see each other.
    """
    await session.exec(select(func.pg_advisory_xact_lock(_NAMES_LOCK)))
    any_alias = col(Model.aliases).op("?|", is_comparison=True)(
        bindparam("names", list(names), type_=ARRAY(TEXT))
    )
    statement = select(Model).where(
        Model.desired_state == "running", or_(col(Model.served_model_name).in_(names), any_alias)
    )
    if except_id is not None:
        statement = statement.where(Model.id != except_id)
    return (await session.exec(statement.limit(1))).one_or_none()


async def policies(session: AsyncSession, *, except_id: int) -> dict[str, RoutePolicy]:
    """Policies of all other models, by every name of each; an unreadable one counts as empty."""
    # Of models that share a name the one that runs comes last, and is the one that counts.
    order = (col(Model.desired_state).desc(), col(Model.id))
    found: dict[str, RoutePolicy] = {}
    for row in await session.exec(select(Model).where(Model.id != except_id).order_by(*order)):
        try:
            policy = RoutePolicy.model_validate(row.policy)
        except ValidationError:
            policy = RoutePolicy()
        found.update(dict.fromkeys((row.served_model_name, *row.aliases), policy))
    return found


async def wanted_running(session: AsyncSession) -> Sequence[int]:
    """Ids of all models that are to run."""
    return [
        found
        for found in await session.exec(select(Model.id).where(Model.desired_state == "running"))
        if found
    ]
