"""What can be set on the monitor: addresses, and the times by which it judges nodes and endpoints."""

from cortex_shared.settings import HttpSettings, RedisSettings, ServiceSettings
from pydantic import BaseModel, Field, SecretStr


class LivenessSettings(BaseModel):
    """When a node counts as silent, lost or frozen."""

    silent_intervals: float = Field(
        default=3.2, gt=1, description="Heart-beats that may be missed, in the node's own intervals."
    )
    lost_seconds: float = Field(
        default=30, gt=0, description="Silence after which a node without any sign of life is lost."
    )
    adopt_seconds: float = Field(
        default=60,
        gt=0,
        description="The same for nodes that this monitor has not heard yet since it began.",
    )
    answer_seconds: float = Field(
        default=10, gt=0, description="How long an answer to a gateway proves that a node lives."
    )
    freeze_window_seconds: float = Field(
        default=20, gt=0, description="Nodes that fall silent within this time fell silent together."
    )
    freeze_ratio: float = Field(
        default=0.5, gt=0, lt=1, description="More than this share silent together: nothing is evicted."
    )
    freeze_nodes_min: int = Field(default=2, ge=2, description="Fewer silent nodes than this never freeze.")


class EjectionSettings(BaseModel):
    """How long an endpoint that gateways cannot connect to stays out of the table."""

    proof_seconds: float = Field(
        default=3, gt=0, description="A success this recent outweighs a failed connection."
    )
    first_seconds: float = Field(default=5, gt=0, description="The first time out; doubled by each next.")
    last_seconds: float = Field(default=60, gt=0, description="The longest time out.")


class ProbeSettings(BaseModel):
    """How servers that Cortex does not run are looked at."""

    interval_seconds: float = Field(
        default=5,
        gt=0,
        description="Between two looks at a server, give or take a fifth: short enough to be believed, and"
        " seldom enough for servers that are paid for or limit rates.",
    )
    confirm_seconds: float = Field(
        default=1, gt=0, description="Until the second look, when a server that ran does not answer."
    )
    failures_max: int = Field(
        default=2, ge=1, description="Looks in a row that fail before a server that ran counts as failed."
    )
    timeout_seconds: float = Field(default=5, gt=0, description="For one answer, connecting included.")
    at_once_max: int = Field(default=32, ge=1, description="Looks under way at a time.")
    proof_seconds: float = Field(
        default=10, gt=0, description="How long an answer to a gateway outweighs looks that fail."
    )


class LeaseSettings(BaseModel):
    """Which of several monitors writes."""

    renew_seconds: float = Field(default=1, gt=0, description="How often the holder renews.")
    expire_seconds: float = Field(default=2.5, gt=0, description="Unrenewed this long, another takes over.")


class Settings(ServiceSettings):
    """All settings of the monitor."""

    redis: RedisSettings = RedisSettings()
    http: HttpSettings = HttpSettings(port=8087, drain_seconds=2)
    liveness: LivenessSettings = LivenessSettings()
    ejection: EjectionSettings = EjectionSettings()
    lease: LeaseSettings = LeaseSettings()
    probe: ProbeSettings = ProbeSettings()
    engine_secret: SecretStr = Field(
        default=SecretStr(""),
        description="Fleet secret, with which keys of external servers are read to look at those servers; "
        "without it a server that demands its key counts as running.",
    )
    settle_seconds: float = Field(
        default=4,
        ge=0,
        description="With no table in Redis to go on from, how long nodes are given to report first.",
    )
