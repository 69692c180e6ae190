"""The form of the routes file: every field with its type, bounds and default."""

from datetime import datetime
from typing import Annotated

from cortex_shared.contracts.routes import Balance, EngineKind, RoutePolicy, Split, Task, TimeLimits
from pydantic import BaseModel, ConfigDict, Field

from cortex_gateway.positions import Path

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)

type Name = Annotated[str, Field(min_length=1, max_length=256)]
type Count = Annotated[int, Field(ge=0)]


class Listen(BaseModel):
    """Where to listen; what is left out is taken from CORTEX_HTTP__*."""

    model_config = _STRICT

    host: Name | None = None
    port: int | None = Field(default=None, ge=0, le=65535)
    workers: int | None = Field(default=None, ge=0, le=256)


class KeyEntry(BaseModel):
    """A key and what it may do; 0 is no limit. `rpm`, `tpm`: requests and tokens per minute."""

    model_config = _STRICT

    name: Name
    key: Name = Field(repr=False)
    models: list[Name] = Field(default_factory=lambda: ["*"], min_length=1)
    rpm: Count = 0
    tpm: Count = 0
    concurrency: Count = 0
    tokens_per_day: Count = 0
    tokens_per_month: Count = 0
    networks: list[str] = Field(default_factory=list[str])
    priority: int = 0
    expires_at: datetime | None = Field(default=None, strict=False)


class EndpointEntry(BaseModel):
    """One engine. `ca`: certificates (PEM) to trust instead of the system's. `health_path`: for probes."""

    model_config = _STRICT

    url: Name
    weight: float = Field(default=1, gt=0, le=1_000_000)
    key: Name | None = Field(default=None, repr=False)
    model: Name | None = None
    tls_verify: bool = True
    ca: str | None = None
    health_path: str | None = Field(default=None, pattern=r"^/[!-~]*$")


class LimitsEntry(TimeLimits):
    """TimeLimits, with nothing unknown beside them."""

    model_config = _STRICT


class SplitEntry(Split):
    """Split, with nothing unknown beside it."""

    model_config = _STRICT


class RouteEntry(RoutePolicy):
    """One served name: all that a route's policy has, and its engines."""

    model_config = _STRICT

    name: Name
    aliases: list[Name] = Field(default_factory=list[str])
    engine: EngineKind = "openai"
    task: Task = "chat"
    context_length: int | None = Field(default=None, ge=1)
    balance: Balance = "least"  # pyright: ignore[reportIncompatibleVariableOverride] (frozen, so only read)
    limits: LimitsEntry = LimitsEntry()  # pyright: ignore[reportIncompatibleVariableOverride] (as above)
    splits: list[SplitEntry] = Field(default_factory=list[SplitEntry])  # pyright: ignore[reportIncompatibleVariableOverride] (as above)
    endpoints: list[EndpointEntry] = Field(min_length=1)


class File(BaseModel):
    """The whole file; `keys: open` is told apart before."""

    model_config = _STRICT

    listen: Listen = Listen()
    keys: list[KeyEntry] = Field(min_length=1)
    routes: list[RouteEntry] = Field(min_length=1)


MODELS: dict[Path, type[BaseModel]] = {
    (): File,
    ("listen",): Listen,
    ("keys",): KeyEntry,
    ("routes",): RouteEntry,
    ("routes", "limits"): LimitsEntry,
    ("routes", "splits"): SplitEntry,
    ("routes", "endpoints"): EndpointEntry,
}


def known_fields(path: Path) -> list[str]:
    """The fields that may stand at a path."""
    model = MODELS.get(tuple(part for part in path if isinstance(part, str)))
    return list(model.model_fields) if model is not None else []
