"""Answers to the API: an instance's log, and what a model file is."""

from pathlib import Path

import anyio
import anyio.to_thread
from cortex_shared.bus import Bus
from cortex_shared.contracts.observed import Reason
from cortex_shared.contracts.rpc import (
    InspectReply,
    InspectRequest,
    LogsReply,
    LogsRequest,
    node_rpc_subject,
)
from cortex_shared.errors import CortexError, NotFound, Unavailable
from cortex_shared.ids import check_token

from cortex_node_agent.agent import Agent
from cortex_node_agent.engine_logs import EngineLog
from cortex_node_agent.files import ModelRoots
from cortex_node_agent.store import StateFolder

# NATS takes 1 MiB unless it is told otherwise.
_REPLY_BYTES_MAX = 900_000


class Rpc:
    """The node's own questions."""

    def __init__(self, bus: Bus, node: str, agent: Agent, state: StateFolder, roots: ModelRoots) -> None:
        self._bus = bus
        self._node = node
        self._agent = agent
        self._state = state
        self._roots = roots

    async def run(self) -> None:
        """Answer until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._bus.answer, node_rpc_subject(self._node, "logs"), LogsRequest, self._logs)
            group.start_soon(
                self._bus.answer, node_rpc_subject(self._node, "inspect"), InspectRequest, self._inspect
            )

    async def _logs(self, request: LogsRequest, _subject: str) -> LogsReply:
        folder = self._state.log(check_token(request.instance, field="instance"))
        return await anyio.to_thread.run_sync(self._read_log, folder, request)

    def _read_log(self, folder: Path, request: LogsRequest) -> LogsReply:
        running = self._agent.is_running(request.instance)
        if not folder.is_dir():
            if not self._agent.knows(request.instance):
                raise NotFound(
                    f"this node has no log of instance {request.instance}",
                    code="no_log",
                    remedy="it never ran here, or its log was too old and has been removed",
                )
            return LogsReply(text="", next_offset=0, ended=False)
        log, bytes_max = EngineLog(folder), request.bytes_max
        while True:
            try:
                if request.offset is None:
                    piece = log.tail(request.tail_lines, bytes_max)
                else:
                    piece = log.read(request.offset, bytes_max)
            except OSError as error:
                raise Unavailable(
                    f"the log of instance {request.instance} cannot be read: {error.strerror}",
                    code="log_unreadable",
                    remedy="see the disk of the agent's state folder",
                ) from error
            reply = LogsReply(
                text=piece.text,
                next_offset=piece.next_offset,
                ended=not running and piece.next_offset >= piece.end,
            )
            # A control character takes six bytes in JSON: what is too long for NATS would never arrive.
            if len(reply.encode()) <= _REPLY_BYTES_MAX:
                return reply
            bytes_max //= 2

    async def _inspect(self, request: InspectRequest, _subject: str) -> InspectReply:
        return await anyio.to_thread.run_sync(self._inspect_file, request)

    def _inspect_file(self, request: InspectRequest) -> InspectReply:
        path = request.path
        try:
            found = self._roots.locate(path)
            path = str(found)
            info = self._roots.check(found, request.format)
            size = info.file_bytes if info else self._roots.size_bytes(found)
        except CortexError as error:
            return InspectReply(
                path=path, problem=Reason(code=error.code, message=error.message, remedy=error.remedy)
            )
        except OSError as error:
            problem = Reason(
                code="bad_file",
                message=f"{path} cannot be looked at: {error.strerror}",
                remedy="let the agent's user read it, and see that its disk answers",
            )
            return InspectReply(path=path, problem=problem)
        if info is None:
            return InspectReply(path=path, size_bytes=size)
        return InspectReply(
            path=path,
            size_bytes=size,
            architecture=info.architecture,
            quantization=info.quantization,
            parameters=info.parameters,
            context_length=info.context_length,
            block_count=info.block_count,
            embedding_length=info.embedding_length,
            head_count=info.head_count,
            head_count_kv=info.head_count_kv,
            has_chat_template=info.has_chat_template,
            pooling=info.pooling,
        )
