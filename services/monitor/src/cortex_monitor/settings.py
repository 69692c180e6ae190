"""What can be set on the monitor: addresses, and the times by which it judges nodes and endpoints."""

from cortex_shared.settings import HttpSettings, RedisSettings, ServiceSettings
from pydantic import BaseModel, Field


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
    settle_seconds: float = Field(
        default=4,
        ge=0,
        description="With no table in Redis to go on from, how long nodes are given to report first.",
    )
