"""Rows as the controllers see them: frozen, typed, apart from the session that read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from cortex_shared.contracts.observed import Reason
from cortex_shared.contracts.plan import Plan

from cortex_api.engines.base import ModelSpec
from cortex_api.placement import Reserved


@dataclass(frozen=True)
class FleetRow:
    """Who this fleet is, and its counters."""

    fleet: str
    manifest_epoch: int
    routes_epoch: int


@dataclass(frozen=True)
class ModelRow:
    """A model. `spec` is None when its settings cannot be read, and `unreadable` says why.

    `endpoint_keys`: of servers that others run, by address, encrypted.
    """

    id: int
    name: str
    served_model_name: str
    running: bool
    deleting: bool
    generation: int
    replicas: int
    created_at: datetime
    spec: ModelSpec | None
    unreadable: Reason | None = None
    endpoint_keys: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)


@dataclass(frozen=True)
class InstanceRow:
    """One replica as a node is told of it."""

    id: str
    model_id: int
    model: str
    served_model_name: str
    node: str
    ordinal: int
    gpus: tuple[str, ...]
    desired: Literal["run", "stop"]
    generation: int
    model_generation: int
    plan: Plan
    plan_hash: str
    memory_mib: int

    @property
    def reserved(self) -> Reserved:
        """The memory that it was promised."""
        return Reserved(self.id, self.node, self.memory_mib, self.gpus)


@dataclass(frozen=True)
class NodeRow:
    """What administrators say of a node."""

    name: str
    cordoned: bool
    labels: dict[str, str]
