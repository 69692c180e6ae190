"""AppState: everything that routes are given; built in main.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import anyio
from cortex_shared.bus import Bus
from cortex_shared.clock import utc_now
from cortex_shared.metrics import Metrics
from cortex_shared.nats_auth import Authority
from cortex_shared.redis_connection import Redis

from cortex_api.auth.principals import Principals
from cortex_api.db.session import Database
from cortex_api.hints import Hinted
from cortex_api.observations import Observations
from cortex_api.outbox import Outbox
from cortex_api.rest.live import Places
from cortex_api.secrets import SecretBox


@dataclass(frozen=True)
class AppState:
    """The parts of one API process."""

    process: str
    database: Database
    bus: Bus
    redis: Redis
    observations: Observations
    controllers: Hinted
    outbox: Outbox
    principals: Principals
    secret_box: SecretBox
    metrics: Metrics
    readiness: Callable[[], dict[str, str | None]]
    authority: Authority | None = None
    started_at: datetime = field(default_factory=utc_now)
    # Set when the process is to end, so that open streams do not hold it up.
    stopping: anyio.Event = field(default_factory=anyio.Event)
    event_places: Places = field(default_factory=lambda: Places(64))
    log_places: Places = field(default_factory=lambda: Places(64))
