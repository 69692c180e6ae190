"""Settings of the gateway: environment variables CORTEX_*, nested by two underscores."""

from pathlib import Path

from cortex_shared.settings import HttpSettings, RedisSettings, ServiceSettings
from pydantic import BaseModel, Field, SecretStr

KIB = 1024
MIB = 1024 * KIB


class GatewayHttpSettings(HttpSettings):
    """Where the gateway listens; its port has a name in the access file, hence a fixed default."""

    port: int = Field(default=8084, ge=0, le=65535, description="Port to listen on; 0: any free one.")


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


class MeterSettings(BaseModel):
    """Where usage is kept until the bus has it."""

    journal_dir: Path | None = Field(
        default=None,
        description="Folder of the usage journal and of the table of open requests. None: a folder "
        "cortex-gateway-journal of the system's temporary folder.",
    )
    journal_max_bytes: int = Field(
        default=256 * MIB,
        ge=1 * MIB,
        description="Bound of the journal while NATS is away; records beyond it are lost and counted so.",
    )
    flush_seconds: float = Field(
        default=0.5, gt=0, le=60, description="Longest wait of a record for its batch."
    )
    open_max: int = Field(
        default=4096, ge=16, le=65536, description="Open requests that the table of open requests can hold."
    )


class Settings(ServiceSettings):
    """Everything the gateway can be told."""

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
