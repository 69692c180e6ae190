"""/instances."""

from typing import Annotated

from cortex_shared.contracts.observed import Phase
from cortex_shared.ids import TOKEN_PATTERN
from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from cortex_api.deps import Hinting, Operator, Session, State, Viewer
from cortex_api.instances import repository, service
from cortex_api.instances.logs import TAIL_MAX
from cortex_api.instances.schemas import InstanceOut
from cortex_api.instances.view import InstanceViews
from cortex_api.models import repository as models_repository
from cortex_api.rest.errors import error_responses
from cortex_api.rest.pages import Cursor, Limit, Page, decode_text, encode_cursor

router = APIRouter(prefix="/instances", tags=["instances"])

InstanceId = Annotated[str, Path(pattern=TOKEN_PATTERN, description="Id of the instance.")]
Tail = Annotated[int, Query(ge=0, le=TAIL_MAX, description="How many of the last lines.")]
Follow = Annotated[bool, Query(description="Go on with what is added, until the instance has ended.")]

TEXT = {
    "description": "The log as text; of several instances one after another, each with a head.",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}


@router.get("", operation_id="listInstances", summary="List instances", responses=error_responses(404))
async def list_instances(
    state: State,
    session: Session,
    _caller: Viewer,
    model: Annotated[str | None, Query(max_length=128, description="Only of this model, id or name.")] = None,
    node: Annotated[str | None, Query(max_length=64, description="Only on this node.")] = None,
    phase: Annotated[Phase | None, Query(description="Only in this phase.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[InstanceOut]:
    """Instances in the order of their ids."""
    model_id: int | None = None
    if model is not None:
        model_id = models_repository.model_id(await models_repository.get(session, model))
    views = InstanceViews(state.observations)
    after = decode_text(cursor)
    items: list[InstanceOut] = []
    # The phase is not a column, so pages of rows are looked through until the answer is full.
    while True:
        rows = await repository.page(session, node=node, model_id=model_id, after=after, limit=limit + 1)
        for row, of in rows:
            found = views.full(row, of)
            if phase is not None and found.phase != phase:
                continue
            if len(items) == limit:
                return Page(items=items, next_cursor=encode_cursor(items[-1].id))
            items.append(found)
        if len(rows) <= limit:
            return Page(items=items)
        after = rows[-1][0].id


@router.get(
    "/{instance}", operation_id="getInstance", summary="Show an instance", responses=error_responses(404)
)
async def get_instance(state: State, session: Session, _caller: Viewer, instance: InstanceId) -> InstanceOut:
    """An instance with its plan."""
    row, model = await service.get(session, instance)
    return InstanceViews(state.observations).full(row, model, with_plan=True)


@router.delete(
    "/{instance}",
    operation_id="endInstance",
    summary="End an instance that no model has",
    status_code=202,
    response_class=Response,
    responses={202: {"description": "It is told to stop."}, **error_responses(404, 409)},
)
async def end_instance(
    state: State, session: Session, hints: Hinting, caller: Operator, instance: InstanceId
) -> Response:
    """For engines that run though the database does not know them, since it was lost or put back."""
    await service.end_unplaced(state, session, hints, caller, instance)
    return Response(status_code=202)


@router.get(
    "/{instance}/logs",
    operation_id="getInstanceLogs",
    summary="Read an instance's log",
    response_class=Response,
    responses={200: TEXT, **error_responses(404)},
)
async def get_instance_logs(
    request: Request,
    state: State,
    _caller: Viewer,
    instance: InstanceId,
    tail: Tail = 200,
    follow: Follow = False,
) -> Response:
    """What the engine wrote, asked of its node."""
    source = await service.source_of(state, instance)
    return await service.logs_response(request, state, [source], tail=tail, follow=follow)
