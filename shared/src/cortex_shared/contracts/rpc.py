"""Questions and answers over NATS request/reply."""

from typing import Literal

from pydantic import Field

from cortex_shared.contracts.base import Contract, Message
from cortex_shared.contracts.observed import Reason


def node_rpc_subject(node: str, verb: str) -> str:
    """Subject on which a node answers `verb`: logs, inspect, preflight."""
    return f"cortex.v1.rpc.node.{node}.{verb}"


def secrets_subject(node: str) -> str:
    """Subject on which the API answers a node's wish for secrets of its own instances."""
    return f"cortex.v1.rpc.api.secrets.{node}"


class RpcError(Contract):
    """A CortexError as an answer: `status` names its kind."""

    status: int
    code: str
    message: str
    field: str | None = None
    remedy: str | None = None


class SecretsRequest(Message):
    """Secrets named by the plan of an instance."""

    type: Literal["cortex.secrets_request.v1"] = "cortex.secrets_request.v1"
    node: str
    instance: str
    names: list[str]


class SecretsReply(Message):
    """Name → value; names that the instance may not have are missing."""

    type: Literal["cortex.secrets_reply.v1"] = "cortex.secrets_reply.v1"
    values: dict[str, str] = Field(default_factory=dict[str, str], repr=False)


class LogsRequest(Message):
    """Log lines of an instance from byte `offset` of its whole log; None: the last `tail_lines`."""

    type: Literal["cortex.logs_request.v1"] = "cortex.logs_request.v1"
    instance: str
    offset: int | None = None
    tail_lines: int = Field(default=200, ge=0, le=10_000)
    bytes_max: int = Field(default=262_144, ge=1, le=524_288)


class LogsReply(Message):
    """`text` ends at a line's end unless the log does not; ask again from `next_offset`."""

    type: Literal["cortex.logs_reply.v1"] = "cortex.logs_reply.v1"
    text: str
    next_offset: int
    ended: bool


class InspectRequest(Message):
    """Look at a model file or folder on the node, as a plan would name it."""

    type: Literal["cortex.inspect_request.v1"] = "cortex.inspect_request.v1"
    path: str
    format: Literal["gguf", "folder", "file"] = "file"


class InspectReply(Message):
    """`problem` says why the file cannot be used; the rest is what its header says."""

    type: Literal["cortex.inspect_reply.v1"] = "cortex.inspect_reply.v1"
    path: str
    problem: Reason | None = None
    size_bytes: int | None = None
    architecture: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    block_count: int | None = None
    embedding_length: int | None = None
    head_count: int | None = None
    head_count_kv: int | None = None
    has_chat_template: bool | None = None
    pooling: str | None = None
