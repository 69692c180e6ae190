"""/models."""

from typing import Annotated, Any

from cortex_shared.contracts.routes import Task
from cortex_shared.errors import InvalidInput
from fastapi import APIRouter, Depends, Path, Query
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cortex_api.deps import Hinting, Operator, Session, State, Viewer
from cortex_api.models import dry_run, service
from cortex_api.models.dry_run import DryRun
from cortex_api.models.flat import Document
from cortex_api.models.schemas import reference, request_body
from cortex_api.models.state import ModelState
from cortex_api.rest.errors import error_responses
from cortex_api.rest.pages import INTEGER_MAX, Cursor, Limit, decode_number, encode_cursor

router = APIRouter(prefix="/models", tags=["models"])

Ref = Annotated[
    str,
    Path(min_length=1, max_length=128, description="Id (digits) or name of a model.", examples=["tiny"]),
]
EngineType = Annotated[str | None, Query(max_length=64, description="Only models of this engine.")]

_NEW = {"name": "tiny", "engine_type": "llamacpp", "local_path": "tiny.gguf", "context_size": 4096}
_CHANGE = {"replicas": 2, "context_size": None}


async def _document(request: Request) -> Document:
    data = await request.body()
    if not data:
        raise InvalidInput("a body is missing", code="body.missing", remedy="send a JSON object")
    # The edge has seen that it is JSON.
    return service.require_object(from_json(data))


# Named so that FastAPI takes it for no query parameter; the schema is in openapi_extra.
Sent = Annotated[dict[str, Any], Depends(_document)]


def _answer(document: Document, status: int = 200) -> Response:
    return JSONResponse(document, status_code=status)


@router.get(
    "",
    operation_id="listModels",
    summary="List models",
    response_model=None,
    responses={200: reference("ModelPage", "A page of models."), **error_responses()},
)
async def list_models(
    state: State,
    session: Session,
    _caller: Viewer,
    model_state: Annotated[
        ModelState | None, Query(alias="state", description="Only models in this state.")
    ] = None,
    engine_type: EngineType = None,
    task: Annotated[Task | None, Query(description="Only models for this task.")] = None,
    q: Annotated[str | None, Query(max_length=256, description="Part of a name or served name.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """Models in the order of their ids."""
    items, after = await service.page(
        state,
        session,
        model_state=model_state,
        engine_type=engine_type,
        task=task,
        q=q,
        after=min(decode_number(cursor), INTEGER_MAX),
        limit=limit,
    )
    return _answer({"items": items, "next_cursor": None if after is None else encode_cursor(after)})


@router.post(
    "",
    operation_id="createModel",
    summary="Create a model",
    response_model=None,
    status_code=201,
    responses={201: reference("Model", "The model, stopped."), **error_responses(409, 413)},
    openapi_extra=request_body("ModelCreate", _NEW),
)
async def create_model(
    state: State, session: Session, hints: Hinting, caller: Operator, document: Sent
) -> Response:
    """Store a model; nothing runs until it is started. `warnings` say what could not be checked."""
    return _answer(await service.create(state, session, hints, caller, document), 201)


@router.post(
    "/dry-run",
    operation_id="dryRunNewModel",
    summary="Show what a model would do, storing nothing",
    responses=error_responses(409, 413),
    openapi_extra=request_body("ModelCreate", _NEW),
)
async def dry_run_new(state: State, _caller: Operator, document: Sent) -> DryRun:
    """The exact plan of each replica, where it would be placed, and per node why not."""
    return await dry_run.of_document(state, document)


@router.get(
    "/{model}",
    operation_id="getModel",
    summary="Show a model",
    response_model=None,
    responses={200: reference("Model", "The model."), **error_responses(404)},
)
async def get_model(state: State, session: Session, _caller: Viewer, model: Ref) -> Response:
    """A model, its state and its instances."""
    return _answer(await service.show(state, session, model))


@router.patch(
    "/{model}",
    operation_id="patchModel",
    summary="Change a model",
    response_model=None,
    responses={200: reference("Model", "The model as it is now."), **error_responses(404, 409, 413)},
    openapi_extra=request_body("ModelPatch", _CHANGE),
)
async def patch_model(
    state: State, session: Session, hints: Hinting, caller: Operator, model: Ref, document: Sent
) -> Response:
    """Merge a change; null resets a field. Instances of a running model are replaced where they must be."""
    return _answer(await service.patch(state, session, hints, caller, model, document))


@router.delete(
    "/{model}",
    operation_id="deleteModel",
    summary="Delete a model",
    response_model=None,
    status_code=204,
    responses={
        202: reference("Model", "It is deleted when its instances have stopped."),
        204: {"description": "It is gone."},
        **error_responses(404, 409),
    },
)
async def delete_model(
    state: State,
    session: Session,
    hints: Hinting,
    caller: Operator,
    model: Ref,
    stop: Annotated[bool, Query(description="Stop it first if it runs.")] = False,
) -> Response:
    """Remove a model. Its files stay."""
    done = await service.delete(state, session, hints, caller, model, stop_first=stop)
    return Response(status_code=204) if done is None else _answer(done[1], done[0])


@router.post(
    "/{model}/start",
    operation_id="startModel",
    summary="Start a model",
    response_model=None,
    responses={
        200: reference("Model", "It was started before."),
        202: reference("Model", "It begins to start."),
        **error_responses(404, 409),
    },
)
async def start_model(
    state: State, session: Session, hints: Hinting, caller: Operator, model: Ref
) -> Response:
    """Want the model running, from now on and after every restart."""
    status, document = await service.start(state, session, hints, caller, model)
    return _answer(document, status)


@router.post(
    "/{model}/stop",
    operation_id="stopModel",
    summary="Stop a model",
    response_model=None,
    responses={
        200: reference("Model", "It was stopped before."),
        202: reference("Model", "It begins to stop."),
        **error_responses(404),
    },
)
async def stop_model(
    state: State, session: Session, hints: Hinting, caller: Operator, model: Ref
) -> Response:
    """Want the model stopped: its instances drain and end."""
    status, document = await service.stop(state, session, hints, caller, model)
    return _answer(document, status)


@router.post(
    "/{model}/dry-run",
    operation_id="dryRunModel",
    summary="Show what starting a model would do",
    responses=error_responses(404),
)
async def dry_run_model(state: State, _caller: Viewer, model: Ref) -> DryRun:
    """The exact plan of each replica, where it would be placed, and per node why not."""
    return await dry_run.of_model(state, model)
