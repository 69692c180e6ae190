"""What the REST API answers, as far as the command line reads it. `--json` prints the answers as they are."""

from typing import Any, NotRequired, TypedDict


class Reason(TypedDict):
    """Why something is as it is, and what to do."""

    code: str
    message: str
    remedy: NotRequired[str | None]


class Instance(TypedDict):
    """One replica of a model."""

    id: str
    model: NotRequired[str]
    model_id: NotRequired[int]
    node: NotRequired[str]
    phase: NotRequired[str]
    reason: NotRequired[Reason | None]
    since: NotRequired[str | None]
    url: NotRequired[str | None]
    port: NotRequired[int | None]
    pid: NotRequired[int | None]
    gpus: NotRequired[list[str]]
    generation: NotRequired[int]
    restarts: NotRequired[int]
    started_at: NotRequired[str | None]
    ready_at: NotRequired[str | None]
    progress_ratio: NotRequired[float | None]


class Endpoint(TypedDict):
    """A server that others run."""

    url: str
    weight: NotRequired[float]
    model: NotRequired[str | None]
    api_key_set: NotRequired[bool]
    state: NotRequired[str]
    reason: NotRequired[Reason | None]
    latency_seconds: NotRequired[float | None]
    checked_at: NotRequired[str | None]


class Model(TypedDict):
    """A model; its engine's own settings stand beside these fields."""

    id: int
    name: str
    served_model_name: str
    engine_type: str
    task: str
    replicas: int
    state: str
    desired_state: NotRequired[str]
    state_reason: NotRequired[Reason | None]
    ready_replicas: NotRequired[int]
    local_path: NotRequired[str | None]
    repo_id: NotRequired[str | None]
    filename: NotRequired[str | None]
    instances: NotRequired[list[Instance]]
    endpoints: NotRequired[list[Endpoint]]
    warnings: NotRequired[list[str] | None]


class Gpu(TypedDict):
    """A GPU of a node; memory in MiB."""

    index: int
    name: str
    memory_total_mib: int
    memory_used_mib: int


class Node(TypedDict):
    """A host with an agent; memory in MiB."""

    name: str
    verdict: NotRequired[str | None]
    cordoned: NotRequired[bool]
    address: NotRequired[str | None]
    cpus: NotRequired[int | None]
    memory_total_mib: NotRequired[int | None]
    memory_available_mib: NotRequired[int | None]
    gpus: NotRequired[list[Gpu]]
    instances: NotRequired[list[Instance]]
    agent_version: NotRequired[str | None]


class Key(TypedDict):
    """An API key; `key` is there only in the answer that made it."""

    id: int
    name: str
    role: NotRequired[str]
    shown: NotRequired[str]
    key: NotRequired[str]
    models: NotRequired[list[str]]
    created_at: NotRequired[str]
    expires_at: NotRequired[str | None]
    revoked_at: NotRequired[str | None]


class Event(TypedDict):
    """Something that happened."""

    id: str
    at: str
    kind: str
    level: str
    message: str
    model: NotRequired[str | None]
    node: NotRequired[str | None]


type Json = dict[str, Any]
