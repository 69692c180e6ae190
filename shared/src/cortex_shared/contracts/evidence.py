"""GatewayEvidence: what a gateway saw of each endpoint in the last second."""

from datetime import datetime
from typing import Literal

from cortex_shared.contracts.base import Contract, Message

SUBJECTS = "cortex.v1.evidence.*"


def evidence_subject(gateway: str) -> str:
    """Subject of one gateway's evidence."""
    return f"cortex.v1.evidence.{gateway}"


class EndpointEvidence(Contract):
    """Counts since the last message; `first_token_seconds` is the mean, None when none arrived."""

    instance: str
    successes: int = 0
    failures: int = 0
    connect_failures: int = 0
    in_flight: int = 0
    first_token_seconds: float | None = None


class GatewayEvidence(Message):
    """Sent once a second while there is traffic, not at all when there is none."""

    type: Literal["cortex.gateway_evidence.v1"] = "cortex.gateway_evidence.v1"
    gateway: str
    at: datetime
    endpoints: list[EndpointEvidence]
