"""Bodies of keys."""

from datetime import datetime
from ipaddress import ip_network
from typing import Annotated

from pydantic import AwareDatetime, Field, StringConstraints, field_validator

from cortex_api.auth.roles import Role
from cortex_api.rest.bodies import Body

_LIMIT_MAX = 2**31 - 1
_TOKENS_MAX = 2**62

type Network = Annotated[str, StringConstraints(max_length=64)]
type Served = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class KeyFields(Body):
    """What an administrator says of a key. Limits of 0 mean none."""

    name: str = Field(
        min_length=1, max_length=128, pattern=r"^\S(.*\S)?$", description="For people.", examples=["alice"]
    )
    role: Role = Field(default="user", description="What it may do in this API; user: only the gateway.")
    models: list[Served] = Field(
        default_factory=lambda: ["*"],
        max_length=1024,
        description="Served names that it may use at the gateway; `*`: all.",
    )
    requests_per_minute: int = Field(default=0, ge=0, le=_LIMIT_MAX, strict=True)
    tokens_per_minute: int = Field(default=0, ge=0, le=_LIMIT_MAX, strict=True)
    concurrency: int = Field(
        default=0, ge=0, le=_LIMIT_MAX, strict=True, description="Requests at the same time."
    )
    tokens_per_day: int = Field(default=0, ge=0, le=_TOKENS_MAX, strict=True)
    tokens_per_month: int = Field(default=0, ge=0, le=_TOKENS_MAX, strict=True)
    networks: list[Network] = Field(
        default_factory=list[Network],
        max_length=64,
        description="Networks that it may be used from, as 10.0.0.0/8; empty: any.",
    )
    priority: int = Field(
        default=0, ge=-100, le=100, strict=True, description="Higher goes first where requests wait."
    )
    expires_at: AwareDatetime | None = Field(
        default=None, description="When it ends by itself, with its offset from UTC; null: never."
    )

    @field_validator("networks")
    @classmethod
    def _are_networks(cls, networks: list[str]) -> list[str]:
        for network in networks:
            ip_network(network, strict=False)
        return networks


class KeyCreate(KeyFields):
    """A new key."""


class KeyPatch(KeyFields):
    """A change of a key; null resets a field to its default."""

    # Only the names and the forms of fields count here: which are given decides, see the service.
    name: str | None = Field(default=None, min_length=1, max_length=128, pattern=r"^\S(.*\S)?$")  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues] (a patch may leave it out)


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
