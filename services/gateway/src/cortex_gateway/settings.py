"""Settings of the gateway: environment variables CORTEX_*, nested by two underscores."""

from pathlib import Path
from typing import Literal

from cortex_shared.settings import HttpSettings, LogSettings, RedisSettings, ServiceSettings
from pydantic import BaseModel, Field, SecretStr

KIB = 1024
MIB = 1024 * KIB


class GatewayHttpSettings(HttpSettings):
    """Where the gateway listens; its port has a name in the access file, hence a fixed default."""

    port: int = Field(default=8084, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    cors_origins: list[str] = Field(
        default_factory=list,
        description="Origins (`https://chat.example.org`) whose pages may call the gateway from a browser; "
        "`*`: any. None by default: a key in a web page is everybody's.",
    )
    workers: int = Field(
        default=1,
        ge=0,
        le=256,
        description="Processes that share the port; 0: one per core that this process may use. 1 serves in "
        "the very process started: one core carries thousands of streams, and the rest is the engines'.",
    )


class IntakeSettings(BaseModel):
    """What a client may send, and how slowly."""

    head_max_bytes: int = Field(
        default=64 * KIB, ge=1 * KIB, le=1 * MIB, description="Largest request head; more is answered 431."
    )
    body_max_bytes: int = Field(
        default=64 * MIB,
        ge=1 * KIB,
        le=1024 * MIB,
        description="Largest request body (images travel in it as base64); more is answered 413.",
    )
    head_seconds: float = Field(
        default=10, gt=0, le=600, description="From a request head's first byte to its last."
    )
    body_seconds: float = Field(
        default=120,
        gt=0,
        le=3600,
        description="Between two pieces of a request body, and four times that in all.",
    )
    keep_alive_seconds: float = Field(
        default=75,
        gt=0,
        le=3600,
        description="How long an idle client connection is kept: longer than clients keep theirs, so that "
        "they close first.",
    )
    client_stall_seconds: float = Field(
        default=120,
        gt=0,
        le=3600,
        description="How long a client may take nothing of a stream before it is cut.",
    )


class UpstreamSettings(BaseModel):
    """How the gateway talks to engines."""

    idle_seconds: float = Field(
        default=3,
        gt=0,
        le=60,
        description="How long an idle engine connection is kept: below the 5 s after which vLLM closes it.",
    )
    idle_max: int = Field(default=256, ge=0, le=4096, description="Idle connections kept for each endpoint.")
    response_max_bytes: int = Field(
        default=64 * MIB, ge=64 * KIB, le=1024 * MIB, description="Largest answer that is not a stream."
    )
    event_max_bytes: int = Field(
        default=8 * MIB, ge=64 * KIB, le=256 * MIB, description="Largest single event of a stream."
    )
    responses_max: int = Field(
        default=16384,
        ge=0,
        le=1_048_576,
        description="Responses whose engine is remembered, to be asked for later: about 300 bytes each.",
    )
    affinity_max_bytes: int = Field(
        default=4 * MIB,
        ge=1 * KIB,
        le=1024 * MIB,
        description="Memory for which engine has had which prompts and sessions, of all routes that are "
        "balanced by them; none if none is. 8 bytes are for one session, or for 512 to 8192 bytes of a "
        "prompt: 4 MiB are 500,000 of them.",
    )
    attempts_max: int = Field(
        default=3, ge=1, le=10, description="Attempts of one request, each on another endpoint."
    )
    retry_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Attempts added per request of a route over time: no retry storms.",
    )
    retry_burst: float = Field(
        default=10,
        ge=0,
        le=1000,
        description="Attempts that a route may add at once before the share counts.",
    )
    ping_seconds: float = Field(
        default=15,
        ge=0,
        le=600,
        description="Silence after which a stream gets a comment line, so that no proxy cuts it; 0: never. "
        "The first opens the answer with status 200, so it must not come before errors usually do.",
    )
    gather_seconds: float = Field(
        default=0.002,
        ge=0,
        le=0.1,
        description="How long events of a stream with more than 1000 of them a second are gathered, to be "
        "passed on together; 0: never. Nobody sees 2 ms, and such a stream costs half.",
    )


class MeterSettings(BaseModel):
    """Where usage is kept until it is counted."""

    journal_dir: Path | None = Field(
        default=None,
        description="Folder of the usage journal and of the table of open requests. None: a folder "
        "cortex-gateway-journal of the system's temporary folder. Standing alone the usage files are under "
        "it, by default in cortex-gateway-usage-UID of the temporary folder.",
    )
    journal_max_bytes: int = Field(
        default=256 * MIB,
        ge=1 * MIB,
        description="Bound of the journal. While NATS is away it holds what is unsent, and records beyond "
        "the bound are lost and counted so. What NATS has and the API has not counted yet is held besides, "
        "for a NATS that comes back empty; it goes first when room is needed. "
        "Standing alone: bound of the usage files, of which the oldest are removed and counted.",
    )
    flush_seconds: float = Field(
        default=2.0,
        gt=0,
        le=60,
        description="Longest wait of a record for its batch. It is safe in the journal meanwhile, and each "
        "batch costs the requests that it meets about a millisecond.",
    )
    open_max: int = Field(
        default=4096, ge=16, le=65536, description="Open requests that the table of open requests can hold."
    )


class TraceSettings(BaseModel):
    """Which requests are traced, and where their spans go."""

    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+",
        description="Address of an OpenTelemetry collector's OTLP/HTTP receiver, such as "
        "http://127.0.0.1:4318; spans go to its path /v1/traces. None: no spans are made.",
    )
    otlp_headers: dict[str, SecretStr] = Field(
        default_factory=dict[str, SecretStr],
        description="Headers for the collector, such as its key; as a variable: a JSON object.",
    )
    sample_share: float = Field(
        default=0,
        ge=0,
        le=1,
        description="How many of the requests that bring no `traceparent` are traced, of 1. 0: only those "
        "whose clients ask for it are traced, and others cost nothing.",
    )
    queue_max_spans: int = Field(
        default=2048,
        ge=1,
        le=65536,
        description="Spans that may wait for the collector, about 2 KiB each; more are dropped and counted.",
    )
    batch_max_spans: int = Field(
        default=512, ge=1, le=8192, description="Spans in one message: about 1 MiB, which collectors take."
    )
    flush_seconds: float = Field(
        default=2, gt=0, le=60, description="Longest wait of a span for others to be sent with."
    )
    timeout_seconds: float = Field(
        default=10, gt=0, le=120, description="How long the collector may take to accept a message."
    )


class GatewayLogSettings(LogSettings):
    """How the gateway logs, and which requests."""

    access: Literal["off", "errors", "all"] = Field(
        default="errors",
        description="Which finished requests get a line: none, those that the gateway or an engine failed, "
        "or all, which adds 25 µs of CPU to each.",
    )
    access_per_second_max: int = Field(
        default=20,
        ge=1,
        le=100_000,
        description="Lines of failed requests per second; more are counted in the next line. All requests, "
        "where they are wanted, have no such bound.",
    )


class LimitSettings(BaseModel):
    """How limits of keys are shared with other gateways."""

    wait_seconds: float = Field(
        default=0.25,
        gt=0,
        le=5,
        description="How long a request may wait to hear whether its key has anything left; then this "
        "gateway's own share of the limit decides. Redis usually answers within a millisecond.",
    )
    waiting_max: int = Field(
        default=1024,
        ge=1,
        le=65536,
        description="Requests of one key that may wait for that at once; more are answered 429.",
    )
    gateways_min: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="How many gateway processes share each limit, as long as Redis has never said: a gateway "
        "that starts while Redis is away gives out this part of each limit.",
    )


class Settings(ServiceSettings):
    """Everything the gateway can be told."""

    # Settings are frozen, so that a narrower type cannot be assigned a wider one.
    log: GatewayLogSettings = GatewayLogSettings()  # pyright: ignore[reportIncompatibleVariableOverride]
    http: GatewayHttpSettings = GatewayHttpSettings()
    redis: RedisSettings = RedisSettings()
    engine_secret: SecretStr = Field(
        default=SecretStr(""), description="Fleet secret from which every engine's key is derived."
    )
    snapshot_dir: Path | None = Field(
        default=None,
        description="Folder for the last known routes and keys (mode 0600), from which a gateway that starts "
        "while Redis is away or empty serves at once. None: keep none.",
    )
    intake: IntakeSettings = IntakeSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    meter: MeterSettings = MeterSettings()
    trace: TraceSettings = TraceSettings()
    limits: LimitSettings = LimitSettings()
