"""RouteWanted: what the API wants routed; RoutingTable: what gateways route by."""

from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue

from cortex_shared.contracts.base import Contract, Message

WANTED_BUCKET = "cortex_routes_wanted_v1"
WANTED_MANIFEST = "_manifest"

# What writers may say. Readers take any text, since one value that is new to them must not cost them the
# whole routing table; a kind of engine that they do not know is to be treated like "openai".
type Task = Literal["chat", "completion", "embedding", "rerank"]
type EngineKind = Literal["vllm", "llamacpp", "openai"]
type Balance = Literal["least", "prefix", "session", "round_robin"]


class TimeLimits(Contract):
    """Each in seconds: connecting, to the first token, between events, the whole answer."""

    connect_seconds: float = Field(default=2, gt=0)
    first_token_seconds: float = Field(default=600, gt=0)
    idle_seconds: float = Field(default=120, gt=0)
    total_seconds: float = Field(default=3600, gt=0)


class Split(Contract):
    """A share of a route's requests that goes to another route: a canary, or a step of a migration.

    `share` is of 1. Who is sent there stays there: it is a share of sessions where requests name one, else of
    conversations.
    """

    to: str
    share: float = Field(ge=0, le=1)


class RoutePolicy(Contract):
    """How requests to a route are spread and bounded.

    `concurrency` is per endpoint, over all gateways; 0: no cap. `reserve` is the share of those slots that a
    class of priority leaves to each class above it. `fallbacks` are served names that are tried in turn,
    before any content, when no endpoint of this route can answer. `strict`: parameters that the engine does
    not have are refused instead of passed over. `defaults` are request fields for clients that give none.
    """

    balance: str = "least"  # a Balance, or one of a later version
    concurrency: int = Field(default=0, ge=0)
    queue_max: int = Field(default=1024, ge=0)
    queue_seconds: float = Field(default=60, gt=0)
    reserve: float = Field(default=0.1, ge=0, le=0.5)
    fallbacks: list[str] = Field(default_factory=list[str])
    splits: list[Split] = Field(default_factory=list[Split])
    strict: bool = False
    defaults: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    limits: TimeLimits = TimeLimits()


class Server(Contract):
    """Where an engine is reached, and how.

    `sealed_key` is the key to present, encrypted for this very address and these very TLS settings (see
    cortex_shared.endpoint_keys); `key` is the same in the clear, for tables that never leave their host.
    `tls_verify` False: any certificate will do. `ca`: PEM text of the certificates to trust instead of the
    system's. `health_path`: what the monitor asks for; None: the list of models.
    """

    url: str
    weight: float = 1
    model: str | None = None
    key: str | None = Field(default=None, repr=False)
    sealed_key: str | None = Field(default=None, repr=False)
    tls_verify: bool = True
    ca: str | None = Field(default=None, repr=False)
    health_path: str | None = None


class ExternalEndpoint(Server):
    """An engine that Cortex does not run; `id` stays the same as long as its address does."""

    id: str


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


class Endpoint(Server):
    """One engine. The gateway presents `key` or `sealed_key` if given.

    If not, it presents the key derived from `instance`; to an `external` one, that Cortex does not run, none.
    """

    instance: str
    node: str | None = None
    external: bool = False


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
