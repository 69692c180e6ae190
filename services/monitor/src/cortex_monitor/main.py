"""Builds the monitor and runs it."""

from cortex_shared.bus import Bus, Mirror
from cortex_shared.bus.connection import new_process_name
from cortex_shared.contracts import external, observed, routes, telemetry, verdicts
from cortex_shared.health import health_app
from cortex_shared.metrics import Metrics
from cortex_shared.process import serve
from cortex_shared.redis_connection import connect_redis
from cortex_shared.routing_store import RoutingStore

from cortex_monitor.exposition import FleetCollector
from cortex_monitor.publisher import Offer
from cortex_monitor.settings import Settings
from cortex_monitor.state import FleetState
from cortex_monitor.watch import Mirrors, Watch

_WRITE_BUCKETS = (0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


async def monitor(settings: Settings) -> None:
    """Run until told to stop; a failure of any part ends it."""
    name = new_process_name("monitor")
    bus = Bus(settings.nats, name=name, owns_streams=True)
    mirrors = Mirrors(
        observed=Mirror.of_bucket(bus, observed.BUCKET),
        wanted=Mirror.of_bucket(bus, routes.WANTED_BUCKET),
        verdicts=Mirror.of_bucket(bus, verdicts.BUCKET),
        external=Mirror.of_bucket(bus, external.BUCKET),
    )
    samples = Mirror(bus, telemetry.STREAM, telemetry.SUBJECTS)
    redis = connect_redis(settings.redis.url.get_secret_value())
    state = FleetState(settings.liveness, settings.ejection, settings.probe)
    metrics = Metrics("monitor")
    writes = metrics.histogram(
        "route_write_seconds", "From hearing of a change to the table in Redis.", _WRITE_BUCKETS
    )

    def written(offer: Offer, now: float) -> None:
        writes.observe(now - offer.since)

    watch = Watch(bus, state, RoutingStore(redis), settings, mirrors=mirrors, name=name, on_written=written)
    metrics.gauge("lease_held", "1 if this monitor is the one that writes.").set_function(
        lambda: float(watch.lease.held)
    )
    metrics.registry.register(FleetCollector(state, watch.publisher, samples))

    def readiness() -> dict[str, str | None]:
        return {
            "nats": None if bus.connected else "not connected",
            "observed": None if mirrors.observed.synced else "not read yet",
            "redis": watch.publisher.problem,
        }

    try:
        await serve(
            health_app(readiness, metrics),
            [
                bus.run,
                mirrors.observed.run,
                mirrors.wanted.run,
                mirrors.verdicts.run,
                mirrors.external.run,
                samples.run,
                watch.run,
            ],
            host=settings.http.host,
            port=settings.http.port,
            drain_seconds=settings.http.drain_seconds,
            on_stop=watch.lease.release,
        )
    finally:
        await redis.aclose()
