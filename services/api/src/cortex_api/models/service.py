"""What can be done with models. The caller's transaction is the unit; messages leave after its commit."""

from collections.abc import Sequence
from typing import Any, Literal

from cortex_shared.clock import utc_now
from cortex_shared.errors import Conflict, InvalidInput
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.audit import record
from cortex_api.auth.principals import Principal
from cortex_api.db.tables import Instance, Model
from cortex_api.hints import Hints
from cortex_api.instances import repository as instances_repository
from cortex_api.models import repository
from cortex_api.models.doubts import doubts
from cortex_api.models.endpoints import keys_to_store
from cortex_api.models.files import check_file
from cortex_api.models.flat import Document, ModelBody, merge, parse_body
from cortex_api.models.present import ModelViews
from cortex_api.state import AppState

_BATCH = 200
# What an engine's plan is made of: a change of one makes a new generation.
_FOLLOWED = ("served_model_name", "task", "engine_version", "engine_image", "mode", "settings")

type Answer = tuple[int, Document]


def views(state: AppState) -> ModelViews:
    """The maker of answers."""
    return ModelViews(state.observations, state.controllers)


async def page(
    state: AppState,
    session: AsyncSession,
    *,
    model_state: str | None,
    engine_type: str | None,
    task: str | None,
    q: str | None,
    after: int,
    limit: int,
) -> tuple[list[Document], int | None]:
    """Models after an id, and the id after which the next page begins, None when this is the last.

    The state is not a column, so pages of rows are looked through until the answer is full.
    """
    maker = views(state)
    found: list[Document] = []
    while True:
        rows = await repository.page(
            session, engine_type=engine_type, task=task, q=q, after=after, limit=_BATCH
        )
        placed = await instances_repository.of_models(session, [repository.model_id(row) for row in rows])
        for row in rows:
            instances = placed[repository.model_id(row)]
            if model_state is not None and maker.state(row, instances)[0] != model_state:
                continue
            if len(found) == limit:
                return found, int(found[-1]["id"])
            found.append(maker.flat(row, instances))
        if len(rows) < _BATCH:
            return found, None
        after = repository.model_id(rows[-1])


async def show(state: AppState, session: AsyncSession, ref: str) -> Document:
    """One model. Raises NotFound."""
    row = await repository.get(session, ref)
    return views(state).flat(row, await _instances(session, row))


async def create(
    state: AppState, session: AsyncSession, hints: Hints, principal: Principal, document: Document
) -> Document:
    """Store a new model, stopped. Raises InvalidInput, Conflict."""
    body = parse_body(document)
    # Before the first statement: no network call inside a transaction.
    warnings = await check_file(state.bus, state.observations, body.spec(model_id=0))
    await _check_name(session, body.shared.name, except_id=None)
    await _check_served(session, body.shared.served_names(), except_id=None)
    warnings += await doubts(session, body.spec(model_id=0))
    row = Model(name="", served_model_name="", task="", engine_type="")
    fill(state, row, body)
    session.add(row)
    await session.flush()
    _record(session, hints, principal, row, "model.created", f"model {row.name} was created")
    return views(state).flat(row, [], warnings=warnings)


async def patch(
    state: AppState, session: AsyncSession, hints: Hints, principal: Principal, ref: str, change: Document
) -> Document:
    """Merge a change into a model. Raises InvalidInput, Conflict, NotFound."""
    warnings: list[str] = []
    if change.get("local_path") is not None:
        async with state.database.transaction() as reading:
            before = as_document(await repository.get(reading, ref))
        body = parse_body(merge(before, change))
        warnings = await check_file(state.bus, state.observations, body.spec(model_id=0))
    row = await repository.get(session, ref, lock=True)
    _refuse_deleting(row)
    if change.get("engine_type", row.engine_type) != row.engine_type:
        raise Conflict(
            f"model {row.name} is of engine_type {row.engine_type}, which cannot be changed",
            code="models.engine_type_fixed",
            field="engine_type",
            remedy="create another model, and delete this one",
        )
    body = parse_body(merge(as_document(row), change))
    ident = repository.model_id(row)
    if body.shared.name != row.name:
        await _check_name(session, body.shared.name, except_id=ident)
    names = body.shared.served_names()
    if names != (row.served_model_name, *row.aliases):
        await _check_served(session, names, except_id=ident)
    warnings += await doubts(session, body.spec(model_id=ident))
    followed = _followed(row)
    fill(state, row, body)
    if "hf_token" in change and change["hf_token"] is None:
        row.hf_token_encrypted = None
    if _followed(row) != followed or "hf_token" in change:
        row.generation += 1
    row.updated_at = utc_now()
    session.add(row)
    detail = {"fields": sorted(change), "generation": row.generation}
    _record(session, hints, principal, row, "model.changed", f"model {row.name} was changed", detail=detail)
    return views(state).flat(row, await _instances(session, row), warnings=warnings)


async def start(
    state: AppState, session: AsyncSession, hints: Hints, principal: Principal, ref: str
) -> Answer:
    """Want a model running: 202 when that is new, 200 when it was so. Raises Conflict, NotFound."""
    row = await repository.get(session, ref, lock=True)
    _refuse_deleting(row)
    if row.desired_state == "running":
        hints.model(repository.model_id(row))
        instances = await _instances(session, row)
        found, _ = views(state).state(row, instances)
        message = f"model {row.name} is already started; its state is {found}"
        return 200, views(state).flat(row, instances, message=message)
    repository.spec_of(row)
    await _check_served(session, (row.served_model_name, *row.aliases), except_id=repository.model_id(row))
    return await _want(state, session, hints, principal, row, "running")


async def stop(
    state: AppState, session: AsyncSession, hints: Hints, principal: Principal, ref: str
) -> Answer:
    """Want a model stopped: 202 when something has to stop, 200 when nothing runs. Raises NotFound."""
    row = await repository.get(session, ref, lock=True)
    if row.desired_state == "stopped":
        instances = await _instances(session, row)
        what = "stopping already" if instances else "already stopped"
        return 200, views(state).flat(row, instances, message=f"model {row.name} is {what}")
    return await _want(state, session, hints, principal, row, "stopped")


async def delete(
    state: AppState, session: AsyncSession, hints: Hints, principal: Principal, ref: str, *, stop_first: bool
) -> Answer | None:
    """Remove a model: None when it is gone, 202 while its instances stop. Raises Conflict, NotFound."""
    row = await repository.get(session, ref, lock=True)
    instances = await _instances(session, row)
    if row.desired_state == "stopped" and not instances:
        await session.delete(row)
        _record(session, hints, principal, row, "model.deleted", f"model {row.name} was deleted")
        return None
    if not stop_first and not row.deleting:
        raise Conflict(
            f"model {row.name} is {views(state).state(row, instances)[0]}",
            code="models.running",
            remedy="stop it first, or delete with ?stop=true",
        )
    if not row.deleting:
        row.deleting = True
        row.desired_state = "stopped"
        row.updated_at = utc_now()
        session.add(row)
        message = f"model {row.name} is stopped and then deleted"
        _record(session, hints, principal, row, "model.deleting", message)
    hints.model(repository.model_id(row))
    return 202, views(state).flat(
        row, instances, message=f"model {row.name} is deleted when its instances have stopped"
    )


async def _want(
    state: AppState,
    session: AsyncSession,
    hints: Hints,
    principal: Principal,
    row: Model,
    wanted: Literal["running", "stopped"],
) -> Answer:
    row.desired_state = wanted
    row.updated_at = utc_now()
    session.add(row)
    word = {"running": "started", "stopped": "stopped"}[wanted]
    _record(session, hints, principal, row, f"model.{word}", f"model {row.name} was asked to be {word}")
    instances = await _instances(session, row)
    doing = {"running": "starting", "stopped": "stopping"}[wanted]
    return 202, views(state).flat(row, instances, message=f"model {row.name} is {doing}")


async def _instances(session: AsyncSession, row: Model) -> Sequence[Instance]:
    ident = repository.model_id(row)
    return (await instances_repository.of_models(session, [ident]))[ident]


def as_document(row: Model) -> Document:
    """A stored model as the flat document that would create it, without its secrets."""
    document: Document = {
        "name": row.name,
        "served_model_name": row.served_model_name,
        "aliases": row.aliases,
        "task": row.task,
        "engine_type": row.engine_type,
        "engine_version": row.engine_version,
        "engine_image": row.engine_image,
        "mode": row.mode,
        "replicas": row.replicas,
        "placement": row.placement,
        "policy": row.policy,
        **row.settings,
    }
    return {name: value for name, value in document.items() if value is not None}


def fill(state: AppState, row: Model, body: ModelBody) -> None:
    """Write a valid body into a row; secrets are encrypted, and kept where the body has none."""
    shared = body.shared
    row.endpoint_keys = keys_to_store(state.secret_box, row.endpoint_keys, body.settings)
    row.name = shared.name
    row.served_model_name = shared.served_model_name or shared.name
    row.aliases = list(shared.aliases)
    row.task = shared.task
    row.engine_type = shared.engine_type
    row.engine_version = shared.engine_version
    row.engine_image = shared.engine_image
    row.mode = shared.mode
    row.replicas = shared.replicas
    row.placement = shared.placement.model_dump(mode="json", exclude_unset=True)
    row.policy = shared.policy.model_dump(mode="json", exclude_unset=True)
    # As given, so that a later release's better default is taken; null means the default, too.
    dumped = body.settings.model_dump(mode="json")
    row.settings = {name: dumped[name] for name, value in body.given.items() if value is not None}
    if shared.hf_token is not None:
        row.hf_token_encrypted = state.secret_box.encrypt(shared.hf_token)


def _followed(row: Model) -> list[Any]:
    return [getattr(row, name) for name in _FOLLOWED]


async def _check_name(session: AsyncSession, name: str, *, except_id: int | None) -> None:
    if await repository.name_taken(session, name, except_id=except_id):
        raise Conflict(
            f"there is a model named {name!r} already",
            code="models.name_taken",
            field="name",
            remedy="choose another name",
        )


async def _check_served(session: AsyncSession, names: Sequence[str], *, except_id: int | None) -> None:
    other = await repository.server_of(session, names, except_id=except_id)
    if other is not None:
        taken = next(name for name in names if name in (other.served_model_name, *other.aliases))
        raise Conflict(
            f"model {other.name!r} (id {other.id}) is started and served as {taken!r}",
            code="models.served_name_taken",
            field="served_model_name" if taken == names[0] else "aliases",
            remedy=f"stop model {other.name!r}, or choose another served_model_name",
        )


def _refuse_deleting(row: Model) -> None:
    if row.deleting:
        raise Conflict(
            f"model {row.name} is being deleted",
            code="models.deleting",
            remedy="wait until it is gone, then create it anew",
        )


def _record(
    session: AsyncSession,
    hints: Hints,
    principal: Principal,
    row: Model,
    action: str,
    message: str,
    *,
    detail: dict[str, Any] | None = None,
) -> None:
    ident = repository.model_id(row)
    record(
        session, hints, principal, action, f"model/{ident}", message,
        detail=detail, model_id=ident, model=row.name,
    )  # fmt: skip
    hints.model(ident)


def require_object(document: object) -> Document:
    """A JSON value as a document; raises InvalidInput when it is no object."""
    if not isinstance(document, dict):
        raise InvalidInput(
            "the body is not a JSON object", code="body.not_object", remedy='send an object: {"name": ...}'
        )
    return document  # pyright: ignore[reportUnknownVariableType] (JSON: its keys are strings)
