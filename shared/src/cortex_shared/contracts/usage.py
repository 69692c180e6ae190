"""UsageBatch: finished gateway requests, to be counted exactly once."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from cortex_shared.contracts.base import Contract, Message

STREAM = "CORTEX_USAGE"
SUBJECTS = "cortex.v1.usage.*"


def usage_subject(gateway: str) -> str:
    """Subject of one gateway's batches."""
    return f"cortex.v1.usage.{gateway}"


class RequestUsage(Contract):
    """One accepted request. `source` says where the token counts come from:

    engine: the engine's own usage; counted: from the events received, the answer ended early;
    estimated: neither (the gateway died). `outcome`: how the request ended.
    """

    request_id: str
    started_at: datetime
    key_id: int | None = None
    key_name: str | None = None
    model_id: int
    route: str
    instance: str | None = None
    path: str
    stream: bool = False
    status: int
    outcome: Literal["done", "client_left", "engine_failed", "rejected", "gateway_died"]
    source: Literal["engine", "counted", "estimated"]
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    cached_tokens: int = Field(default=0, ge=0)
    first_token_seconds: float | None = None
    duration_seconds: float
    attempts: int = 1


class UsageBatch(Message):
    """Records of one gateway process. Counted once by `request_id`, however often a batch arrives."""

    type: Literal["cortex.usage_batch.v1"] = "cortex.usage_batch.v1"
    gateway: str
    batch: str
    records: list[RequestUsage]
