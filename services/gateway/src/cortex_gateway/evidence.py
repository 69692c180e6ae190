"""Tells the monitor, once a second while there is traffic, what became of requests on each endpoint."""

import anyio
from cortex_shared.bus import Bus
from cortex_shared.clock import utc_now
from cortex_shared.contracts.evidence import EndpointEvidence, GatewayEvidence, evidence_subject
from cortex_shared.errors import Unavailable

from cortex_gateway.gateway import Gateway

_PERIOD_SECONDS = 1.0
_URGENT_SECONDS = 0.05


async def tell_evidence(gateway: Gateway, bus: Bus) -> None:
    """Publish until cancelled; a failure to connect is told at once. Sleeps while nothing is open."""
    while True:
        await gateway.traffic.wait()
        if await gateway.urgent.wait(_PERIOD_SECONDS):
            # Failures of one engine come together: one message for them.
            await anyio.sleep(_URGENT_SECONDS)
        if not gateway.open_requests:
            gateway.rest()
        seen = collect(gateway)
        if not seen:
            continue
        message = GatewayEvidence(gateway=gateway.name, at=utc_now(), endpoints=seen)
        try:
            await bus.publish(evidence_subject(gateway.name), message)
        except Unavailable:
            continue  # evidence of a second ago is worth nothing later


def collect(gateway: Gateway) -> list[EndpointEvidence]:
    """What is to tell of each endpoint on which anything happened or is under way; told once."""
    return [
        endpoint.tell()
        for route in gateway.table.routes()
        for endpoint in route.endpoints
        if endpoint.evidence.any or endpoint.outstanding
    ]
