"""NodeVerdict: whether a node is alive, as the monitor judges; and the monitor's lease."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from cortex_shared.contracts.base import Message

BUCKET = "cortex_verdicts_v1"
LEASE = "_lease"

type Verdict = Literal["live", "silent", "lost", "frozen"]


class NodeVerdict(Message):
    """live: heard of. silent: not heard of, but its engines answer or it is too early to say.
    lost: not heard of for long and nothing answers. frozen: many fell silent at once, so nothing is decided.
    """

    type: Literal["cortex.node_verdict.v1"] = "cortex.node_verdict.v1"
    node: str
    verdict: Verdict
    since: datetime
    last_heard_at: datetime | None = None
    evidence: list[str] = Field(default_factory=list[str])


class MonitorLease(Message):
    """Under key LEASE: who may write routes, until when. `term` grows with each new holder."""

    type: Literal["cortex.monitor_lease.v1"] = "cortex.monitor_lease.v1"
    holder: str
    term: int
    expires_at: datetime
