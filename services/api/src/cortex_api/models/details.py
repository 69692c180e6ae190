"""/models/{model}/instances, logs and events."""

from typing import Annotated

from cortex_shared.ids import TOKEN_PATTERN
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from cortex_api.deps import Session, State, Viewer
from cortex_api.events import service as events
from cortex_api.events.service import StoredEvent, Wanted
from cortex_api.instances import repository as instances_repository
from cortex_api.instances import service as instances
from cortex_api.instances.routes import TEXT, Follow, Tail
from cortex_api.instances.schemas import InstanceOut
from cortex_api.instances.view import InstanceViews
from cortex_api.models import repository
from cortex_api.models.routes import Ref
from cortex_api.rest.errors import error_responses
from cortex_api.rest.pages import Cursor, Limit, Page, decode_number, encode_cursor

router = APIRouter(prefix="/models", tags=["models"])


@router.get(
    "/{model}/instances",
    operation_id="listModelInstances",
    summary="List a model's instances",
    responses=error_responses(404),
)
async def list_model_instances(
    state: State, session: Session, _caller: Viewer, model: Ref
) -> Page[InstanceOut]:
    """All of them, replicas in order, each with its plan."""
    row = await repository.get(session, model)
    ident = repository.model_id(row)
    rows = (await instances_repository.of_models(session, [ident]))[ident]
    views = InstanceViews(state.observations)
    return Page(items=[views.full(instance, row, with_plan=True) for instance in rows])


@router.get(
    "/{model}/logs",
    operation_id="getModelLogs",
    summary="Read a model's logs",
    response_class=Response,
    responses={200: TEXT, **error_responses(404)},
)
async def get_model_logs(
    request: Request,
    state: State,
    _caller: Viewer,
    model: Ref,
    tail: Tail = 200,
    follow: Follow = False,
    instance: Annotated[
        str | None, Query(pattern=TOKEN_PATTERN, description="Only of this instance.")
    ] = None,
) -> Response:
    """What the model's engines wrote, asked of their nodes."""
    sources = await instances.sources_of_model(state, model, instance)
    return await instances.logs_response(request, state, sources, tail=tail, follow=follow)


@router.get(
    "/{model}/events",
    operation_id="listModelEvents",
    summary="What happened to a model",
    responses=error_responses(404),
)
async def list_model_events(
    state: State, _caller: Viewer, model: Ref, limit: Limit = 100, cursor: Cursor = None
) -> Page[StoredEvent]:
    """Its last events, oldest first; `next_cursor` leads to older ones."""
    async with state.database.transaction() as session:
        ident = repository.model_id(await repository.get(session, model))
    found, older = await events.past(
        state.bus, Wanted(model=str(ident)), before=decode_number(cursor), limit=limit
    )
    return Page(items=found, next_cursor=None if older is None else encode_cursor(older))
