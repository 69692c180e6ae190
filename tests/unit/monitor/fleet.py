"""Messages of a small made-up fleet, for tests of the monitor."""

from datetime import UTC, datetime

from cortex_shared.contracts.evidence import EndpointEvidence, GatewayEvidence
from cortex_shared.contracts.observed import InstanceObserved, NodeObserved, Phase
from cortex_shared.contracts.routes import RouteWanted, WantedManifest

WALL = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FLEET = "fleet-1"


def instance(
    name: str,
    phase: Phase = "ready",
    *,
    model_id: int = 1,
    generation: int = 1,
    restarts: int = 0,
    port: int = 20000,
) -> InstanceObserved:
    """An instance; its address follows from its name, or is on this machine if a port is given."""
    return InstanceObserved(
        instance=name,
        fleet=FLEET,
        generation=generation,
        plan_hash="hash",
        model_id=model_id,
        model=f"model-{model_id}",
        served_model_name=f"served-{model_id}",
        name=f"llamacpp-model-{model_id}",
        phase=phase,
        since=WALL,
        url=f"http://{name}.invalid:20000" if port == 20000 else f"http://127.0.0.1:{port}",
        restarts=restarts,
    )


def node(
    name: str, heartbeat: int, *instances: InstanceObserved, heartbeat_seconds: float = 2.5
) -> NodeObserved:
    """A node's heart-beat."""
    return NodeObserved(
        node=name,
        at=WALL,
        heartbeat=heartbeat,
        heartbeat_seconds=heartbeat_seconds,
        agent_version="1",
        agent_started_at=WALL,
        boot_id="boot",
        address=name,
        cpus=1,
        memory_total_mib=1,
        memory_available_mib=1,
        instances=list(instances),
    )


def wanted(model_id: int = 1, *, instances: list[str] | None = None) -> RouteWanted:
    """A wanted route."""
    return RouteWanted(
        model_id=model_id,
        model=f"model-{model_id}",
        served_model_name=f"served-{model_id}",
        task="chat",
        engine="llamacpp",
        created=1,
        instances=instances,
    )


def manifest(*models: int, epoch: int = 1, fleet: str = FLEET) -> WantedManifest:
    """The list of routed models."""
    return WantedManifest(fleet=fleet, epoch=epoch, models=list(models))


def evidence(name: str, *, successes: int = 0, connect_failures: int = 0) -> GatewayEvidence:
    """What one gateway saw of one endpoint."""
    seen = EndpointEvidence(
        instance=name, successes=successes, failures=connect_failures, connect_failures=connect_failures
    )
    return GatewayEvidence(gateway="g", at=WALL, endpoints=[seen])
