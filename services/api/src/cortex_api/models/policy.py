"""A model's policy: its fields, and what it may say of itself and of other models."""

from collections.abc import Collection, Mapping
from typing import Annotated

from cortex_shared.contracts.routes import Balance, RoutePolicy, Split, TimeLimits
from cortex_shared.errors import InvalidInput
from pydantic import ConfigDict, Field, JsonValue, StringConstraints
from pydantic_core import to_json

from cortex_api.rest.bodies import Body

type ServedName = Annotated[
    str, StringConstraints(max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$")
]

# What a client asks for is its own to say: a default of these would answer another question.
NO_DEFAULTS = frozenset({"model", "messages", "prompt", "input", "stream"})
_DAY_SECONDS = 86_400
_DEFAULTS_MAX = 64
_DEFAULTS_BYTES_MAX = 16 * 1024
_TOLERANCE = 1e-9


class TimeLimitsBody(TimeLimits, Body):
    """Each in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="TimeLimits")

    connect_seconds: float = Field(default=2, gt=0, le=600, description="To connect to an engine.")
    first_token_seconds: float = Field(
        default=600, gt=0, le=_DAY_SECONDS, description="From sending a request to its first token."
    )
    idle_seconds: float = Field(default=120, gt=0, le=_DAY_SECONDS, description="Between two tokens.")
    total_seconds: float = Field(default=3600, gt=0, le=_DAY_SECONDS, description="The whole answer.")


class SplitBody(Split, Body):
    """A share of the requests that goes to another model."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Split")

    to: ServedName = Field(description="Served name or alias of the other model.")
    share: float = Field(ge=0, le=1, description="Of 1; of sessions, where requests name one.")


class PolicyBody(RoutePolicy, Body):
    """How requests to the model are spread and bounded."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Policy")

    balance: Balance = Field(  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
        default="least",
        description="least: to the replica with the fewest requests; prefix: to the one that has most of the"
        " prompt in its cache, unless it is busy; session: a user's to one replica; round_robin: in turn.",
    )
    concurrency: int = Field(
        default=0, ge=0, le=100_000, description="Requests at a time for one replica; 0: no cap."
    )
    queue_max: int = Field(
        default=1024, ge=0, le=1_000_000, description="Requests that may wait for a replica, per gateway."
    )
    queue_seconds: float = Field(
        default=60, gt=0, le=_DAY_SECONDS, description="How long a request may wait."
    )
    reserve: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Share of the places that keys of one priority leave to those of each higher one.",
    )
    fallbacks: list[ServedName] = Field(
        default_factory=list[ServedName],
        max_length=8,
        description="Served names of models that answer when this one cannot, tried in turn.",
    )
    splits: list[SplitBody] = Field(  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
        default_factory=list[SplitBody], max_length=8, description="Shares of the requests for other models."
    )
    strict: bool = Field(
        default=False,
        description="Refuse parameters that the engine does not have, instead of passing over them.",
    )
    defaults: dict[str, JsonValue] = Field(
        default_factory=dict[str, JsonValue],
        description="Fields of requests for clients that do not give them, as temperature.",
    )
    limits: TimeLimitsBody = Field(  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
        default=TimeLimitsBody(), description="How long the parts of an answer may take."
    )


def check_policy(policy: RoutePolicy, own_names: Collection[str]) -> None:
    """Raise InvalidInput for what no gateway could do. `own_names`: the served name and the aliases."""
    _check_names(
        "fallbacks", [(f"fallbacks.{n}", name) for n, name in enumerate(policy.fallbacks)], own_names
    )
    _check_names("splits", [(f"splits.{n}.to", split.to) for n, split in enumerate(policy.splits)], own_names)
    share = sum(split.share for split in policy.splits)
    if share > 1 + _TOLERANCE:
        raise _invalid(
            f"the shares of policy.splits add up to {share:g}", "splits",
            "let them add up to 1 or less: what is left stays with this model",
        )  # fmt: skip
    _check_defaults(policy)


def _check_names(what: str, named: list[tuple[str, str]], own_names: Collection[str]) -> None:
    seen: set[str] = set()
    for field, name in named:
        if name in own_names:
            raise _invalid(f"policy.{what} names {name!r}, which is this model", field, "name another model")
        if name in seen:
            raise _invalid(f"policy.{what} names {name!r} twice", field, "name each model once")
        seen.add(name)


def _check_defaults(policy: RoutePolicy) -> None:
    for name in policy.defaults:
        if name in NO_DEFAULTS:
            said = f"policy.defaults has {name}, which is the client's to say"
            raise _invalid(said, f"defaults.{name}", "leave it out")
    if len(policy.defaults) > _DEFAULTS_MAX or len(to_json(policy.defaults)) > _DEFAULTS_BYTES_MAX:
        said = f"policy.defaults has more than {_DEFAULTS_MAX} fields or {_DEFAULTS_BYTES_MAX} bytes"
        raise _invalid(said, "defaults", "keep to parameters such as temperature")


def _invalid(message: str, field: str, remedy: str) -> InvalidInput:
    return InvalidInput(message, code="models.policy", field=f"policy.{field}", remedy=remedy)


def policy_warnings(
    policy: RoutePolicy, own_names: Collection[str], others: Mapping[str, RoutePolicy]
) -> list[str]:
    """What is doubtful of the models that a policy names. `others`: by all names of all other models."""
    told: list[str] = []
    for what, names in (
        ("fallbacks", policy.fallbacks),
        ("splits", [split.to for split in policy.splits if split.share > 0]),
    ):
        told += [
            f"policy.{what}: no model is served as {name!r} yet; until one is, this is passed over"
            for name in names
            if name not in others
        ]
    told += [
        f"policy.splits: requests that are split to {name!r} may be split back; a request goes to each model"
        " once at most"
        for name in (split.to for split in policy.splits)
        if _leads_back(name, own_names, others)
    ]
    return told


def _leads_back(name: str, own_names: Collection[str], others: Mapping[str, RoutePolicy]) -> bool:
    seen: set[str] = set()
    to_see = [name]
    while to_see:
        at = to_see.pop()
        if at in own_names:
            return True
        if at not in seen and at in others:
            seen.add(at)
            to_see += [split.to for split in others[at].splits if split.share > 0]
    return False
