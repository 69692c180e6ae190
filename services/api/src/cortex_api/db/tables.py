"""All tables. Only the API writes them; what nodes observe is not here but on the bus.

A SQLModel table validates nothing: rows are built from validated schemas only, and what must hold whatever
happens is a constraint.
"""

from datetime import datetime
from typing import Any, ClassVar

from cortex_shared.clock import utc_now
from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Index, LargeBinary, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel


def _moment(*, nullable: bool = False) -> Any:
    return Column(DateTime(timezone=True), nullable=nullable)


def _document(default: str) -> Any:
    return Column(JSONB, nullable=False, server_default=text(f"'{default}'::jsonb"))


class Fleet(SQLModel, table=True):
    """One row: who this fleet is, and its counters, which only grow."""

    __tablename__: ClassVar[Any] = "fleet"
    __table_args__ = (CheckConstraint("id = 1", name="fleet_is_one_row"),)

    id: int = Field(default=1, primary_key=True)
    fleet: str
    manifest_epoch: int = 1
    routes_epoch: int = 1
    keyring_version: int = 1
    created_at: datetime = Field(default_factory=utc_now, sa_column=_moment())


class Model(SQLModel, table=True):
    """What an administrator created. `settings` is the engine's typed document."""

    __tablename__: ClassVar[Any] = "models"
    __table_args__ = (
        CheckConstraint("replicas >= 0 AND replicas <= 1024", name="models_replicas"),
        CheckConstraint("desired_state IN ('stopped', 'running')", name="models_desired_state"),
        # Served names are unique among routed models, stopped ones may share one.
        Index(
            "models_served_name_routed",
            "served_model_name",
            unique=True,
            postgresql_where=text("desired_state = 'running'"),
        ),
    )

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    served_model_name: str = Field(index=True)
    aliases: list[str] = Field(default_factory=list, sa_column=_document("[]"))
    task: str
    engine_type: str
    engine_version: str | None = None
    engine_image: str | None = None
    mode: str = "online"
    replicas: int = 1
    settings: dict[str, Any] = Field(default_factory=dict, sa_column=_document("{}"))
    placement: dict[str, Any] = Field(default_factory=dict, sa_column=_document("{}"))
    policy: dict[str, Any] = Field(default_factory=dict, sa_column=_document("{}"))
    hf_token_encrypted: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    # Of servers that others run: address -> the key to present there, encrypted.
    endpoint_keys: dict[str, str] = Field(default_factory=dict, sa_column=_document("{}"))
    desired_state: str = "stopped"
    # Deleted as soon as its instances are gone (a delete that was asked to stop it first).
    deleting: bool = False
    # Bumped by every change that an instance must follow.
    generation: int = 1
    created_at: datetime = Field(default_factory=utc_now, sa_column=_moment())
    updated_at: datetime = Field(default_factory=utc_now, sa_column=_moment())


class Instance(SQLModel, table=True):
    """One replica, placed: what a node is told. The row goes when the node confirms that it stopped."""

    __tablename__: ClassVar[Any] = "instances"
    __table_args__ = (
        CheckConstraint("desired IN ('run', 'stop')", name="instances_desired"),
        CheckConstraint("generation >= 1", name="instances_generation"),
    )

    id: str = Field(primary_key=True)
    model_id: int = Field(foreign_key="models.id", index=True)
    node: str = Field(index=True)
    ordinal: int
    gpus: list[str] = Field(default_factory=list, sa_column=_document("[]"))
    desired: str = "run"
    # Generation of this instance's command, and of the model from which its plan was compiled.
    generation: int = 1
    model_generation: int = 1
    plan: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    plan_hash: str
    memory_mib: int = 0
    created_at: datetime = Field(default_factory=utc_now, sa_column=_moment())
    changed_at: datetime = Field(default_factory=utc_now, sa_column=_moment())


class Node(SQLModel, table=True):
    """What administrators say of a host. A node appears here when it is first heard, or invited."""

    __tablename__: ClassVar[Any] = "nodes"

    name: str = Field(primary_key=True)
    labels: dict[str, str] = Field(default_factory=dict, sa_column=_document("{}"))
    cordoned: bool = False
    invited_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    first_heard_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))


class ApiKey(SQLModel, table=True):
    """A key of a person or program; only its SHA-256 is kept. `shown` is its first characters."""

    __tablename__: ClassVar[Any] = "api_keys"
    __table_args__ = (
        CheckConstraint("role IN ('admin', 'operator', 'viewer', 'user')", name="api_keys_role"),
    )

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True)
    hash: str = Field(unique=True)
    shown: str
    role: str = "user"
    models: list[str] = Field(default_factory=lambda: ["*"], sa_column=_document('["*"]'))
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0
    tokens_per_day: int = Field(default=0, sa_type=BigInteger)
    tokens_per_month: int = Field(default=0, sa_type=BigInteger)
    networks: list[str] = Field(default_factory=list, sa_column=_document("[]"))
    priority: int = 0
    created_by: str | None = None
    created_at: datetime = Field(default_factory=utc_now, sa_column=_moment())
    expires_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))
    revoked_at: datetime | None = Field(default=None, sa_column=_moment(nullable=True))


class Usage(SQLModel, table=True):
    """One counted request; the primary key makes counting exact."""

    __tablename__: ClassVar[Any] = "usage"
    __table_args__ = (
        # Holds all that sums of tokens read, so that they need not look at the rows.
        Index(
            "usage_tokens_by_time",
            "started_at",
            postgresql_include=["key_id", "prompt_tokens", "completion_tokens"],
        ),
        Index("usage_by_key", "key_id", "started_at"),
    )

    request_id: str = Field(primary_key=True)
    started_at: datetime = Field(sa_column=_moment())
    gateway: str
    key_id: int | None = None
    key_name: str | None = None
    model_id: int
    route: str
    instance: str | None = None
    path: str
    stream: bool = False
    status: int
    outcome: str
    source: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    first_token_seconds: float | None = None
    duration_seconds: float
    attempts: int = 1


class Audit(SQLModel, table=True):
    """Who changed what."""

    __tablename__: ClassVar[Any] = "audit"

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(default_factory=utc_now, sa_column=_moment())
    actor: str
    action: str
    target: str
    detail: dict[str, Any] = Field(default_factory=dict, sa_column=_document("{}"))
