"""ExternalObserved: how the engines are that Cortex does not run, as the monitor finds them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from cortex_shared.contracts.base import Contract, Message
from cortex_shared.contracts.observed import Reason

BUCKET = "cortex_external_v1"

# starting: not looked at yet. loading: it says itself that it is not ready.
type ServerState = Literal["starting", "loading", "running", "failed"]


class EndpointObserved(Contract):
    """One of a model's external endpoints. A `reason` beside `running` is a warning."""

    id: str
    url: str
    state: str  # a ServerState, or one of a later version
    since: datetime
    reason: Reason | None = None
    latency_seconds: float | None = None
    checked_at: datetime | None = None


class ExternalObserved(Message):
    """All external endpoints of one model, under key `<model_id>` of BUCKET. None: it is not routed."""

    type: Literal["cortex.external_observed.v1"] = "cortex.external_observed.v1"
    model_id: int
    endpoints: list[EndpointObserved]


def state_of_all(states: Sequence[str]) -> str:
    """The state of what is served by endpoints in these states: running when all are, degraded when some."""
    if "running" in states:
        return "running" if all(state == "running" for state in states) else "degraded"
    return next((state for state in ("loading", "starting", "failed") if state in states), "starting")
