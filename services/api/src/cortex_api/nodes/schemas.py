"""What the API says of nodes, and takes."""

from datetime import datetime
from typing import Annotated, Literal

from cortex_shared.contracts.observed import GpuObserved, Phase, ProgramObserved, Reason
from cortex_shared.contracts.verdicts import Verdict
from cortex_shared.ids import TOKEN_PATTERN
from pydantic import BaseModel, Field, StringConstraints

from cortex_api.rest.bodies import Body

type LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
type LabelValue = Annotated[str, StringConstraints(max_length=256)]


class NodeCreate(Body):
    """A host that is to join."""

    name: str = Field(pattern=TOKEN_PATTERN, description="Its node id.", examples=["gpu-1"])
    labels: dict[LabelName, LabelValue] = Field(
        default_factory=dict[LabelName, LabelValue], max_length=64, description="For placement."
    )


class NodePatch(Body):
    """A change of what is said of a node."""

    labels: dict[LabelName, LabelValue | None] | None = Field(
        default=None,
        max_length=64,
        description="Merged into the labels; null removes one, or all.",
        examples=[{"zone": "a", "old": None}],
    )


class NodeInstance(BaseModel):
    """An instance on a node."""

    id: str
    model_id: int
    model: str
    phase: Phase
    placed: bool = Field(
        default=True,
        description="false: it runs though no model has it, since the database was lost or put back."
        " It goes on until DELETE /instances/{id}.",
    )


class NodeOut(BaseModel):
    """A node: what administrators say of it, what it says of itself, what the monitor judges."""

    name: str
    verdict: Verdict | None = Field(description="The monitor's judgement; null: none yet.")
    verdict_since: datetime | None = None
    evidence: list[str] = Field(default_factory=list, description="What the verdict rests on.")
    cordoned: bool = Field(description="Whether nothing new is placed on it.")
    labels: dict[str, str] = Field(description="Its own, overridden by an administrator's.")
    labels_set: dict[str, str] = Field(description="Those that an administrator set.")
    invited_at: datetime | None = Field(description="When credentials were last made for it.")
    first_heard_at: datetime | None
    last_heard_at: datetime | None = Field(description="Time of its last heart-beat, by its own clock.")
    heartbeat_age_seconds: float | None
    address: str | None = None
    agent_version: str | None = None
    agent_started_at: datetime | None = None
    cpus: int | None = None
    cpu_used_ratio: float | None = None
    memory_total_mib: int | None = None
    memory_available_mib: int | None = None
    disk_free_mib: int | None = None
    gpus: list[GpuObserved] = Field(default_factory=list[GpuObserved])
    programs: list[ProgramObserved] = Field(default_factory=list[ProgramObserved])
    model_roots: list[str] = Field(default_factory=list)
    warnings: list[Reason] = Field(default_factory=list[Reason])
    instances: list[NodeInstance] = Field(default_factory=list[NodeInstance])


class NodeCreated(NodeOut):
    """An invited node, with credentials that are shown this once."""

    credentials: str = Field(
        description="Text of a .creds file: give it to the agent as CORTEX_NATS__CREDENTIALS."
    )


class PathReport(BaseModel):
    """What a node says of a model file or folder."""

    path: str
    problem: Reason | None = Field(description="Why it cannot be used; null: it can.")
    size_bytes: int | None
    architecture: str | None
    quantization: str | None
    parameters: int | None
    context_length: int | None
    block_count: int | None
    embedding_length: int | None
    head_count: int | None
    head_count_kv: int | None
    has_chat_template: bool | None
    pooling: str | None


type PathFormat = Literal["gguf", "folder", "file"]
