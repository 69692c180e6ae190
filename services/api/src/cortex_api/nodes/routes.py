"""/nodes."""

from typing import Annotated

from cortex_shared.ids import TOKEN_PATTERN
from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from cortex_api.deps import Admin, Hinting, Operator, Session, State, Viewer
from cortex_api.nodes import service
from cortex_api.nodes.schemas import NodeCreate, NodeCreated, NodeOut, NodePatch, PathFormat, PathReport
from cortex_api.rest.errors import error_responses
from cortex_api.rest.pages import Page

router = APIRouter(prefix="/nodes", tags=["nodes"])

NodeName = Annotated[str, Path(pattern=TOKEN_PATTERN, description="Name of the node.", examples=["gpu-1"])]


@router.get("", operation_id="listNodes", summary="List nodes", responses=error_responses())
async def list_nodes(state: State, session: Session, _caller: Viewer) -> Page[NodeOut]:
    """All nodes by name, on one page."""
    return Page(items=await service.all_nodes(state, session))


@router.post(
    "",
    operation_id="inviteNode",
    summary="Make credentials for a node",
    status_code=201,
    responses=error_responses(409, 413),
)
async def invite_node(
    state: State, session: Session, hints: Hinting, caller: Admin, body: NodeCreate
) -> NodeCreated:
    """The credentials are shown this once; asking again makes others."""
    return await service.invite(state, session, hints, caller, body)


@router.get("/{node}", operation_id="getNode", summary="Show a node", responses=error_responses(404))
async def get_node(state: State, session: Session, _caller: Viewer, node: NodeName) -> NodeOut:
    """A node with its GPUs, programs and instances."""
    return await service.show(state, session, node)


@router.patch(
    "/{node}", operation_id="patchNode", summary="Change a node's labels", responses=error_responses(404, 413)
)
async def patch_node(
    state: State, session: Session, hints: Hinting, caller: Admin, node: NodeName, body: NodePatch
) -> NodeOut:
    """Labels are merged; null removes."""
    return await service.patch(state, session, hints, caller, node, body)


@router.delete(
    "/{node}",
    operation_id="deleteNode",
    summary="Forget a node",
    status_code=204,
    response_class=Response,
    responses=error_responses(404, 409),
)
async def delete_node(state: State, session: Session, hints: Hinting, caller: Admin, node: NodeName) -> None:
    """Only where nothing is placed. An agent that still runs there makes it appear again."""
    await service.delete(state, session, hints, caller, node)


@router.post(
    "/{node}/cordon", operation_id="cordonNode", summary="Place nothing new", responses=error_responses(404)
)
async def cordon_node(
    state: State, session: Session, hints: Hinting, caller: Operator, node: NodeName
) -> NodeOut:
    """What runs there stays."""
    return await service.cordon(state, session, hints, caller, node, cordoned=True)


@router.post(
    "/{node}/uncordon", operation_id="uncordonNode", summary="Place again", responses=error_responses(404)
)
async def uncordon_node(
    state: State, session: Session, hints: Hinting, caller: Operator, node: NodeName
) -> NodeOut:
    """Undo a cordon."""
    return await service.cordon(state, session, hints, caller, node, cordoned=False)


@router.get(
    "/{node}/inspect",
    operation_id="inspectPath",
    summary="Look at a model file on a node",
    responses=error_responses(404),
)
async def inspect_path(
    state: State,
    _caller: Operator,
    node: NodeName,
    path: Annotated[
        str, Query(min_length=1, max_length=4096, description="Absolute, or relative to a model root.")
    ],
    format: Annotated[PathFormat, Query(description="What it should be.")] = "gguf",
) -> PathReport:
    """What its header says, and whether it can be used."""
    return await service.inspect(state, node, path, format)
