"""What the API says of an instance."""

from datetime import datetime
from typing import Literal

from cortex_shared.contracts.observed import Exit, Phase, Reason
from cortex_shared.contracts.plan import Plan
from pydantic import BaseModel, Field


class InstanceBrief(BaseModel):
    """An instance in its model's answer."""

    id: str
    node: str
    phase: Phase
    reason: Reason | None = Field(default=None, description="Why the phase is what it is, and what to do.")
    url: str | None = Field(default=None, description="Where the engine listens.")
    port: int | None = None
    gpus: list[str] = Field(default_factory=list, description="UUIDs of its GPUs.")
    restarts: int = Field(default=0, description="How often the node restarted it.")
    progress_ratio: float | None = Field(default=None, description="0 to 1, while fetching or loading.")
    generation: int = Field(description="Generation that is wanted.")
    generation_running: int | None = Field(default=None, description="Generation that runs; null: none yet.")


class InstanceOut(InstanceBrief):
    """An instance."""

    model_id: int
    model: str
    served_model_name: str
    ordinal: int = Field(description="Which of the model's replicas, from 0.")
    desired: Literal["run", "stop"]
    model_generation: int = Field(description="Generation of the model from which its plan was made.")
    current: bool = Field(description="Whether what runs is what is wanted now.")
    since: datetime | None = Field(default=None, description="When the phase began.")
    pid: int | None = None
    container_name: str
    next_try_at: datetime | None = Field(default=None, description="When the node starts it again.")
    started_at: datetime | None = None
    ready_at: datetime | None = None
    last_exit: Exit | None = None
    memory_mib: int = Field(description="Memory that placement counts for it.")
    plan_hash: str
    plan_hash_running: str | None = None
    created_at: datetime
    changed_at: datetime
    plan: Plan | None = Field(default=None, description="What the node was told; only for one instance.")
