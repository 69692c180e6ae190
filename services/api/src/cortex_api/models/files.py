"""Ask live nodes about a model's file before it is accepted."""

from typing import Literal

import anyio
from cortex_shared.bus import Bus
from cortex_shared.contracts.observed import Reason
from cortex_shared.contracts.rpc import InspectReply, InspectRequest, node_rpc_subject
from cortex_shared.errors import CortexError, InvalidInput, Unavailable

from cortex_api.engines import engine_of
from cortex_api.engines.base import ModelSpec, Slot
from cortex_api.observations import Observations

type FileFormat = Literal["gguf", "folder", "file"]

_ASK_SECONDS = 2.0
NODES_MAX = 8
# A node that merely lacks the file says less than one that has it and finds it bad.
_ABSENT = ("missing", "not_found", "no_such_file", "absent")


async def check_file(bus: Bus, observations: Observations, spec: ModelSpec) -> list[str]:
    """Warnings about the model's file; raises InvalidInput when every node that was asked finds it bad."""
    path = engine_of(spec.engine_type).file(spec)
    if path is None:
        return []
    nodes = candidates(observations, spec)
    replies = await inspect_on(bus, nodes[:NODES_MAX], path, file_format(spec, path))
    if any(reply.problem is None for reply in replies.values()):
        return []
    if not replies:
        return [f"no node could be asked about {path}: it is looked at when the model starts"]
    node, problem = _worst(replies)
    if len(replies) < len(nodes):
        return [f"{path} on node {node}: {problem.message}; not all other nodes could be asked"]
    raise InvalidInput(
        f"{path} on node {node}: {problem.message}",
        code=f"models.{problem.code}",
        field="local_path",
        remedy=problem.remedy or "give the path of a whole, readable model file on the node",
    )


def file_format(spec: ModelSpec, path: str) -> FileFormat:
    """What a model's main file is, as its plan says."""
    files = engine_of(spec.engine_type).plan(spec, Slot()).files
    for file in files:
        if file.path == path:
            return file.format
    return "file"


async def inspect_on(bus: Bus, nodes: list[str], path: str, form: FileFormat) -> dict[str, InspectReply]:
    """What each of these nodes says of a path; those that do not answer in time are left out."""
    replies: dict[str, InspectReply] = {}

    async def ask(node: str) -> None:
        request = InspectRequest(path=path, format=form)
        try:
            replies[node] = await bus.ask(
                node_rpc_subject(node, "inspect"), request, InspectReply, timeout_seconds=_ASK_SECONDS
            )
        except Unavailable:
            return
        except CortexError as error:
            problem = Reason(code=error.code, message=error.message, remedy=error.remedy)
            replies[node] = InspectReply(path=path, problem=problem)

    async with anyio.create_task_group() as group:
        for node in nodes:
            group.start_soon(ask, node)
    return replies


def candidates(observations: Observations, spec: ModelSpec) -> list[str]:
    """Nodes that may be asked: wanted by the placement, not known to be lost."""
    wanted = set(spec.placement.nodes)
    found: list[str] = []
    for name in observations.nodes():
        verdict = observations.verdict(name)
        if verdict is not None and verdict.verdict == "lost":
            continue
        if not wanted or name in wanted:
            found.append(name)
    return found


def _worst(replies: dict[str, InspectReply]) -> tuple[str, Reason]:
    bad = [(node, reply.problem) for node, reply in sorted(replies.items()) if reply.problem is not None]
    return next((found for found in bad if not found[1].code.endswith(_ABSENT)), bad[0])
