"""RouteWanted: what the API wants routed; RoutingTable: what gateways route by."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from cortex_shared.contracts.base import Contract, Message

WANTED_BUCKET = "cortex_routes_wanted_v1"
WANTED_MANIFEST = "_manifest"

# What writers may say. Readers take any text, since one value that is new to them must not cost them the
# whole routing table; a kind of engine that they do not know is to be treated like "openai".
type Task = Literal["chat", "completion", "embedding", "rerank"]
type EngineKind = Literal["vllm", "llamacpp", "openai"]
type Balance = Literal["least", "prefix", "round_robin"]


class TimeLimits(Contract):
    """Each in seconds: connecting, to the first token, between events, the whole answer."""

    connect_seconds: float = Field(default=2, gt=0)
    first_token_seconds: float = Field(default=600, gt=0)
    idle_seconds: float = Field(default=120, gt=0)
    total_seconds: float = Field(default=3600, gt=0)


class RoutePolicy(Contract):
    """How requests to a route are spread and bounded. `concurrency` is per endpoint; 0: no cap."""

    balance: Balance = "least"
    concurrency: int = Field(default=0, ge=0)
    queue_max: int = Field(default=1024, ge=0)
    queue_seconds: float = Field(default=60, gt=0)
    limits: TimeLimits = TimeLimits()


class ExternalEndpoint(Contract):
    """An engine that Cortex does not run. `secret` names the key that the gateway must present."""

    id: str
    url: str
    weight: float = 1
    model: str | None = None
    key: str | None = None


class RouteWanted(Message):
    """One routed model, under key `<model_id>` of WANTED_BUCKET."""

    type: Literal["cortex.route_wanted.v1"] = "cortex.route_wanted.v1"
    model_id: int
    model: str
    served_model_name: str
    aliases: list[str] = Field(default_factory=list[str])
    task: str  # a Task, or one of a later version
    engine: str  # an EngineKind, or one of a later version
    created: int
    context_length: int | None = None
    policy: RoutePolicy = RoutePolicy()
    external: list[ExternalEndpoint] = Field(default_factory=list[ExternalEndpoint])
    # The instances that may serve it: an instance of the model that is not listed is on its way out.
    # None: any ready instance of the model.
    instances: list[str] | None = None
    # Instance -> the node on which it was placed: another node that claims it is not believed.
    placed: dict[str, str] | None = None


class WantedManifest(Message):
    """Under key WANTED_MANIFEST: all models that are routed. A route goes only when a manifest omits it."""

    type: Literal["cortex.routes_wanted_manifest.v1"] = "cortex.routes_wanted_manifest.v1"
    fleet: str
    epoch: int
    models: list[int]


class Endpoint(Contract):
    """One engine. The gateway presents `key` if given, else the key derived from `instance`."""

    instance: str
    node: str | None = None
    url: str
    weight: float = 1
    model: str | None = None
    key: str | None = Field(default=None, repr=False)


class Route(Contract):
    """One served name. No endpoints: the model is wanted but not ready, and `state` says how far it is."""

    name: str
    aliases: list[str] = Field(default_factory=list[str])
    model_id: int
    task: str  # a Task, or one of a later version
    engine: str  # an EngineKind, or one of a later version
    created: int
    context_length: int | None = None
    state: str = "running"
    policy: RoutePolicy = RoutePolicy()
    endpoints: list[Endpoint] = Field(default_factory=list[Endpoint])


class RoutingTable(Message):
    """All routes. (`term`, `version`) only grows: a deposed monitor has an older term.

    `fleet` and `epoch` are of the newest WantedManifest that the routes follow, for the next monitor.
    """

    type: Literal["cortex.routing_table.v1"] = "cortex.routing_table.v1"
    term: int
    version: int
    written_at: datetime
    routes: list[Route]
    fleet: str | None = None
    epoch: int = 0
