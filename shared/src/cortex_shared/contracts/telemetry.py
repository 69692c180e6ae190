"""NodeTelemetry: samples that may be lost."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from cortex_shared.contracts.base import Contract, Message
from cortex_shared.contracts.observed import GpuObserved

STREAM = "CORTEX_TELEMETRY"
SUBJECTS = "cortex.v1.telemetry.*"


def telemetry_subject(node: str) -> str:
    """Subject of a node's samples."""
    return f"cortex.v1.telemetry.{node}"


class EngineSample(Contract):
    """What one engine said of itself, and what its processes use; None where it says nothing."""

    instance: str
    model_id: int
    memory_mib: float | None = None
    cpu_used_cores: float | None = None
    requests_running: float | None = None
    requests_waiting: float | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    kv_cache_usage_ratio: float | None = None


class NodeTelemetry(Message):
    """One sample of a host, its GPUs and its engines."""

    type: Literal["cortex.node_telemetry.v1"] = "cortex.node_telemetry.v1"
    node: str
    at: datetime
    cpu_used_ratio: float | None = None
    memory_total_mib: int
    memory_available_mib: int
    gpus: list[GpuObserved] = Field(default_factory=list[GpuObserved])
    engines: list[EngineSample] = Field(default_factory=list[EngineSample])
