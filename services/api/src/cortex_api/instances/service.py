"""What can be asked of instances."""

from cortex_shared.errors import Conflict, NotFound, Unavailable
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from cortex_api.audit import record
from cortex_api.auth.principals import Principal
from cortex_api.db.tables import Instance, Model
from cortex_api.events.routes import caller_may_stay
from cortex_api.hints import Hints
from cortex_api.instances import logs, repository
from cortex_api.instances.logs import Source
from cortex_api.models import repository as models_repository
from cortex_api.rest.live import LiveResponse, Write
from cortex_api.state import AppState


async def get(session: AsyncSession, instance_id: str) -> tuple[Instance, Model]:
    """An instance and its model; raises NotFound."""
    found = await repository.find(session, instance_id)
    if found is None:
        raise NotFound(
            f"there is no instance {instance_id!r}",
            code="instances.not_found",
            field="instance",
            remedy="see GET /instances; an instance's row goes when it has stopped",
        )
    return found


async def end_unplaced(
    state: AppState, session: AsyncSession, hints: Hints, principal: Principal, instance_id: str
) -> None:
    """Tell a node to stop an engine that no row knows. Raises Conflict, NotFound, Unavailable."""
    placed = await repository.find(session, instance_id)
    if placed is not None:
        raise Conflict(
            f"instance {instance_id} is one of model {placed[1].name}",
            code="instances.placed",
            remedy=f"stop model {placed[1].name}, or lower its replicas",
        )
    for name, node in state.observations.nodes().items():
        for seen in node.instances:
            if seen.instance == instance_id:
                message = f"instance {instance_id} of {seen.model} on {name}, which no model has, is to stop"
                record(
                    session, hints, principal, "instance.ended", f"instance/{instance_id}", message, node=name
                )
                await state.controllers.end_unplaced(name, seen)
                return
    raise _not_seen(instance_id)


async def source_of(state: AppState, instance_id: str) -> Source:
    """Where an instance's log is; raises NotFound."""
    async with state.database.transaction() as session:
        found = await repository.find(session, instance_id)
    if found is not None:
        return Source(found[0].node, instance_id)
    for name, node in state.observations.nodes().items():
        if any(seen.instance == instance_id for seen in node.instances):
            return Source(name, instance_id)
    raise _not_seen(instance_id)


def _not_seen(instance_id: str) -> NotFound:
    return NotFound(
        f"no node has an instance {instance_id!r}",
        code="instances.not_found",
        field="instance",
        remedy="see GET /instances, and GET /nodes for what runs without a model",
    )


async def sources_of_model(state: AppState, ref: str, instance: str | None) -> list[Source]:
    """Where a model's logs are: of one instance, or of all. Raises NotFound."""
    async with state.database.transaction() as session:
        model = await models_repository.get(session, ref)
        ident = models_repository.model_id(model)
        rows = (await repository.of_models(session, [ident]))[ident]
    sources = [Source(row.node, row.id) for row in rows]
    placed = {source.instance for source in sources}
    # One that has stopped has no row any more, but its node may still have its log.
    sources += [
        Source(node, seen.instance)
        for node, seen in state.observations.instances_of(ident)
        if seen.instance not in placed and (not placed or instance == seen.instance)
    ]
    if instance is not None:
        sources = [source for source in sources if source.instance == instance]
    if not sources:
        raise NotFound(
            f"model {model.name} has no instance" + (f" {instance!r}" if instance else ""),
            code="logs.no_instance",
            field="instance" if instance else None,
            remedy=f"see GET /models/{model.name}: `state_reason` says why nothing runs",
        )
    return sources


async def logs_response(
    request: Request, state: AppState, sources: list[Source], *, tail: int, follow: bool
) -> Response:
    """The answer to a wish for logs. Raises Unavailable, NotFound."""
    if not follow:
        return PlainTextResponse(await logs.tail(state.bus, sources, lines=tail))
    if state.log_places.full:
        raise Unavailable(
            f"{state.log_places.places_max} logs are being followed already",
            code="logs.too_many",
            remedy="close some, or ask without follow",
        )

    async def produce(write: Write) -> None:
        await state.log_places.hold(lambda: logs.follow(state.bus, sources, write, lines=tail))

    async def still_allowed() -> bool:
        return await caller_may_stay(request, state)

    return LiveResponse(
        produce, media_type="text/plain; charset=utf-8", stopping=state.stopping, still_allowed=still_allowed
    )
