"""/events."""

from datetime import datetime
from typing import Annotated, Literal

from cortex_shared.errors import Forbidden, InvalidInput, Unauthorized, Unavailable
from fastapi import APIRouter, Header, Query
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cortex_api.deps import State, Viewer
from cortex_api.events import service
from cortex_api.events.service import StoredEvent, Wanted
from cortex_api.rest.bodies import Moment
from cortex_api.rest.errors import error_responses
from cortex_api.rest.live import LiveResponse, Write
from cortex_api.rest.pages import Cursor, Limit, Page, decode_number, encode_cursor

router = APIRouter(prefix="/events", tags=["events"])

_MOMENT: TypeAdapter[datetime] = TypeAdapter(Moment)

Filter = Annotated[str | None, Query(max_length=256)]


@router.get(
    "",
    operation_id="listEvents",
    summary="What happened",
    response_model=Page[StoredEvent],
    responses={
        200: {
            "description": "With format=json the past; else server-sent events, as they happen: `id` is the"
            " sequence, `data` an event.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **error_responses(),
    },
)
async def list_events(
    request: Request,
    state: State,
    _caller: Viewer,
    model: Annotated[str | None, Query(max_length=128, description="Name or id of a model.")] = None,
    instance: Filter = None,
    node: Filter = None,
    kind: Annotated[
        str | None, Query(max_length=64, description="`model.started`, or `model` for all of its kinds.")
    ] = None,
    since: Annotated[
        str | None, Query(max_length=64, description="A sequence to go on after, or a time (ISO 8601).")
    ] = None,
    format: Annotated[
        Literal["sse", "json"], Query(description="sse: a stream; json: the past, oldest first.")
    ] = "sse",
    limit: Limit = 100,
    cursor: Cursor = None,
    last_event_id: Annotated[
        str | None, Header(description="As EventSource sends it: go on after this sequence.")
    ] = None,
) -> Response:
    """Events of models, instances, nodes, keys and alerts; kept for 30 days."""
    after, moment = _since(since)
    wanted = Wanted(model, instance, node, kind, moment)
    if format == "json":
        events, older = await service.past(state.bus, wanted, before=decode_number(cursor), limit=limit)
        kept = [event for event in events if event.sequence > (after or 0)]
        page = Page[StoredEvent](
            items=kept,
            next_cursor=None if older is None or older <= (after or 0) + 1 else encode_cursor(older),
        )
        return JSONResponse(page.model_dump(mode="json"))
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        after = int(last_event_id)
    if state.event_places.full:
        raise Unavailable(
            f"{state.event_places.places_max} streams of events are open already",
            code="events.too_many",
            remedy="close some, or ask with format=json",
        )

    async def produce(write: Write) -> None:
        await state.event_places.hold(lambda: service.stream(state.bus, wanted, write, after=after))

    async def still_allowed() -> bool:
        return await caller_may_stay(request, state)

    return LiveResponse(
        produce,
        media_type="text/event-stream",
        stopping=state.stopping,
        keepalive=b": ping\n\n",
        still_allowed=still_allowed,
    )


def _since(since: str | None) -> tuple[int | None, datetime | None]:
    if since is None:
        return None, None
    if since.isascii() and since.isdigit() and len(since) < 19:
        return int(since), None
    try:
        return None, _MOMENT.validate_python(since)
    except ValidationError as error:
        raise InvalidInput(
            f"since {since!r} is neither a sequence nor a time",
            code="events.bad_since",
            field="since",
            remedy="give a number, or a time with its offset from UTC, as 2026-01-31T12:00:00Z",
        ) from error


async def caller_may_stay(request: Request, state: State) -> bool:
    """Whether the key of a long response still allows it; a Postgres that is away changes nothing."""
    client = request.client.host if request.client else None
    try:
        caller = await state.principals.find(request.headers.get("authorization"), client)
        caller.require("viewer")
    except (Unauthorized, Forbidden):
        return False
    except Unavailable:
        return True
    return True
