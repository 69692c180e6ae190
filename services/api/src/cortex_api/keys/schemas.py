"""Bodies of keys."""

from datetime import datetime
from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from cortex_api.auth.roles import Role
from cortex_api.rest.bodies import Body, Moment


def _is_network(network: str) -> str:
    ip_network(network, strict=False)
    return network


type Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^\S(.*\S)?$")]
type Served = Annotated[str, StringConstraints(min_length=1, max_length=256)]
type Network = Annotated[str, StringConstraints(max_length=64), AfterValidator(_is_network)]
type Limit = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
type Tokens = Annotated[int, Field(ge=0, le=2**62, strict=True)]
type Priority = Annotated[int, Field(ge=-100, le=100, strict=True)]

_ROLE = "What it may do in this API; user: only the gateway."
_MODELS = "Served names that it may use at the gateway; `*`: all."
_CONCURRENCY = "Requests at the same time."
_NETWORKS = "Networks that it may be used from, as 10.0.0.0/8; empty: any."
_PRIORITY = "Higher goes first where requests wait."
_EXPIRES = "When it ends by itself, with its offset from UTC; null: never."


class KeyFields(Body):
    """What an administrator says of a key. Limits of 0 mean none."""

    name: Name = Field(description="For people.", examples=["alice"])
    role: Role = Field(default="user", description=_ROLE)
    models: list[Served] = Field(default_factory=lambda: ["*"], max_length=1024, description=_MODELS)
    requests_per_minute: Limit = 0
    tokens_per_minute: Limit = 0
    concurrency: Limit = Field(default=0, description=_CONCURRENCY)
    tokens_per_day: Tokens = 0
    tokens_per_month: Tokens = 0
    networks: list[Network] = Field(default_factory=list[Network], max_length=64, description=_NETWORKS)
    priority: Priority = Field(default=0, description=_PRIORITY)
    expires_at: Moment | None = Field(default=None, description=_EXPIRES)


class KeyCreate(KeyFields):
    """A new key."""


class KeyPatch(Body):
    """A change of a key; null resets a field to its default."""

    name: Name | None = Field(default=None, description="For people.")
    role: Role | None = Field(default=None, description=_ROLE)
    models: list[Served] | None = Field(default=None, max_length=1024, description=_MODELS)
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrency: Limit | None = Field(default=None, description=_CONCURRENCY)
    tokens_per_day: Tokens | None = None
    tokens_per_month: Tokens | None = None
    networks: list[Network] | None = Field(default=None, max_length=64, description=_NETWORKS)
    priority: Priority | None = Field(default=None, description=_PRIORITY)
    expires_at: Moment | None = Field(default=None, description=_EXPIRES)


class KeyOut(KeyFields):
    """A key, without the key itself."""

    id: int
    shown: str = Field(description="Its first characters, to tell it by.", examples=["sk-cortex-Ab3d"])
    created_by: str | None = Field(description="Name of the key that made it; null: the first start.")
    created_at: datetime
    revoked_at: datetime | None = Field(description="When it was revoked; null: it is not.")


class KeyCreated(KeyOut):
    """A new key, with the key itself, which is shown this once."""

    key: str = Field(description="The key. It is stored nowhere and cannot be shown again.")
