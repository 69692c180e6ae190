"""The fleet at a glance."""

from datetime import datetime
from typing import Any

from cortex_shared.contracts.verdicts import Verdict
from pydantic import BaseModel, Field

from cortex_api.auth.roles import Role
from cortex_api.models.state import ModelState


class PartHealth(BaseModel):
    """Whether a part answers."""

    ok: bool
    problem: str | None = Field(default=None, description="What is wrong; null: nothing.")


class Status(BaseModel):
    """Everything at a glance."""

    fleet: str = Field(description="Id of the fleet.")
    ok: bool = Field(description="Whether all parts are well.")
    parts: dict[str, PartHealth] = Field(description="postgres, nats, redis, monitor.")
    monitor: str | None = Field(description="Which monitor is in charge; null: none.")
    leader: bool = Field(description="Whether this API process runs the controllers.")
    process: str = Field(description="This API process.")
    started_at: datetime
    models: dict[ModelState, int] = Field(description="Models by state; states without any are left out.")
    nodes: dict[Verdict, int] = Field(description="Nodes by verdict.")
    instances: int
    versions: dict[str, str] = Field(description="Of this API and of the agents, by node.")


class EngineOut(BaseModel):
    """An engine that models can use."""

    engine_type: str
    runs_here: bool = Field(description="Whether Cortex runs it; false: it only routes there.")
    program: str | None = Field(description="Program that a node must have.")
    settings_schema: dict[str, Any] = Field(description="JSON Schema of its settings.")


class Whoami(BaseModel):
    """Who is asking."""

    key_id: int
    name: str
    role: Role
    models: list[str] = Field(description="Served names that the key may use at the gateway; `*`: all.")
    expires_at: datetime | None
