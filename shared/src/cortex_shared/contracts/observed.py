"""NodeObserved: the whole of what a node runs and has, under one key per node."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from cortex_shared.contracts.base import Contract, Message

BUCKET = "cortex_observed_v1"

type Phase = Literal[
    "placed",
    "fetching",
    "starting",
    "loading",
    "ready",
    "stuck",
    "unready",
    "stopping",
    "stopped",
    "failed",
]


class Reason(Contract):
    """Why a phase is what it is, for a person: `code` is stable (`exited`, `bad_file`, `no_program`)."""

    code: str
    message: str
    remedy: str | None = None


class Exit(Contract):
    """How an engine ended: exit status or signal, when, and its last log lines (at most 40)."""

    at: datetime
    status: int | None = None
    signal: int | None = None
    oom_killed: bool = False
    last_lines: list[str] = Field(default_factory=list[str])


class InstanceObserved(Contract):
    """One instance on a node. `generation` and `plan_hash` are of what runs, not of what was asked for."""

    instance: str
    fleet: str
    generation: int
    plan_hash: str
    model_id: int
    model: str
    served_model_name: str
    name: str
    phase: Phase
    since: datetime
    reason: Reason | None = None
    url: str | None = None
    port: int | None = None
    pid: int | None = None
    gpus: list[str] = Field(default_factory=list[str])
    restarts: int = 0
    next_try_at: datetime | None = None
    started_at: datetime | None = None
    ready_at: datetime | None = None
    progress_ratio: float | None = None
    last_exit: Exit | None = None


class GpuObserved(Contract):
    """One GPU. `uuid` is stable, `index` is not; memory in MiB."""

    uuid: str
    index: int
    name: str
    memory_total_mib: int
    memory_used_mib: int
    utilization_ratio: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


class ProgramObserved(Contract):
    """A program that plans may name and this host maps to something."""

    name: str
    runtime: Literal["process", "docker"]
    target: str
    version: str | None = None


class NodeObserved(Message):
    """The whole state of one node; its arrival is the heart-beat (`heartbeat` counts up)."""

    type: Literal["cortex.node_observed.v1"] = "cortex.node_observed.v1"
    node: str
    at: datetime
    heartbeat: int
    heartbeat_seconds: float
    agent_version: str
    agent_started_at: datetime
    boot_id: str
    address: str
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    cpus: int
    cpu_used_ratio: float | None = None
    memory_total_mib: int
    memory_available_mib: int
    disk_free_mib: int | None = None
    gpus: list[GpuObserved] = Field(default_factory=list[GpuObserved])
    programs: list[ProgramObserved] = Field(default_factory=list[ProgramObserved])
    model_roots: list[str] = Field(default_factory=list[str])
    manifest_epochs: dict[str, int] = Field(default_factory=dict[str, int])
    warnings: list[Reason] = Field(default_factory=list[Reason])
    instances: list[InstanceObserved] = Field(default_factory=list[InstanceObserved])
