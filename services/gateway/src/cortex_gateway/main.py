"""Builds one gateway process and runs it."""

import asyncio
import socket
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
from cortex_shared.bus import Bus
from cortex_shared.bus.connection import new_process_name
from cortex_shared.contracts.keys import KeyRecord
from cortex_shared.contracts.routes import RoutingTable
from cortex_shared.health import Page
from cortex_shared.keyring import Keyring
from cortex_shared.limit_store import RedisLimits
from cortex_shared.logs import get_logger
from cortex_shared.process import Task, serve
from cortex_shared.redis_connection import connect_redis, follow
from cortex_shared.routing_store import RoutingStore

from cortex_gateway.affinity import Memory
from cortex_gateway.app import build_app
from cortex_gateway.evidence import tell_evidence
from cortex_gateway.gateway import Gateway
from cortex_gateway.journal import Journal
from cortex_gateway.placements import share_placements
from cortex_gateway.protocol import GatewayProtocol
from cortex_gateway.settings import Settings
from cortex_gateway.siblings import Siblings
from cortex_gateway.snapshot import Snapshots
from cortex_gateway.worker import Stops, Worker

_log = get_logger("main")

_LEAVE_SECONDS = 1


def build(
    settings: Settings, name: str, journal: type[Journal] = Journal, worker: Worker | None = None
) -> Gateway:
    """A gateway that knows no route and no key yet. Needs a running loop."""
    folder = settings.meter.journal_dir or Path(tempfile.gettempdir()) / "cortex-gateway-journal"
    gateway = Gateway(settings, name, folder, asyncio.get_running_loop(), journal)
    if worker is not None:
        gateway.table.choosers.share(Memory.over(worker.places.affinity))
    return gateway


async def run_gateway(
    settings: Settings,
    gateway: Gateway,
    tasks: Sequence[Task],
    sockets: list[socket.socket] | None = None,
    *,
    worker: Worker | None = None,
    changed: Callable[[bytes], None] | None = None,
) -> None:
    """Serve until a signal, with these tasks beside; where routes and keys come from is theirs.

    A worker has its sockets, the word to stop and what `changed` gets from its parent.
    """
    page: Page = gateway
    stops = None
    if worker is not None:
        stops, sockets = Stops(), worker.sockets
        page = siblings = Siblings(worker.places, worker.place, gateway.snapshot)
        tasks = [*tasks, siblings.answer, partial(worker.run, stops, changed)]

    def readiness() -> dict[str, str | None]:
        return {
            "serving": "the gateway is stopping" if gateway.draining else None,
            "keys": None if gateway.keys.loaded else "no API keys were received yet",
            "routes": None if gateway.table.loaded else "no routing table was received yet",
        }

    async def stop() -> None:
        _log.info("gateway.draining", open_requests=gateway.open_requests)
        gateway.drain(settings.http.drain_seconds)

    try:
        await serve(
            build_app(gateway, page, readiness),
            [gateway.dialler.run, gateway.tracer.sender.run, *tasks],
            host=settings.http.host,
            port=settings.http.port,
            drain_seconds=settings.http.drain_seconds,
            on_stop=stop,
            sockets=sockets,
            stops=stops,
            http=partial(GatewayProtocol, gateway),
            ws="none",
            proxy_headers=False,
            server_header=False,
        )
    finally:
        gateway.meter.close()


async def main(settings: Settings, worker: Worker | None = None) -> None:
    """Run as part of a fleet: routes and keys from Redis, usage and evidence to NATS."""
    name = new_process_name("gateway")
    gateway = build(settings, name, worker=worker)
    redis = connect_redis(settings.redis.url.get_secret_value())
    gateway.limiter.share(RedisLimits(redis, name))
    bus = Bus(settings.nats, name=name)
    snapshots = Snapshots(settings.snapshot_dir) if settings.snapshot_dir is not None else None
    if snapshots is not None:
        _load(gateway, snapshots)

    def routes_changed(table: RoutingTable) -> None:
        gateway.table.replace(table)
        if snapshots is not None:
            snapshots.save_table(table)

    def keys_changed(ring: dict[str, KeyRecord]) -> None:
        gateway.keys.replace(ring.values())
        if snapshots is not None:
            snapshots.save_keys(ring.values())

    followed = [Keyring(redis).followed(keys_changed), RoutingStore(redis).followed(routes_changed)]
    tasks: list[Task] = [
        bus.run,
        partial(follow, redis, followed, gateway.limiter.look),
        gateway.limiter.run,
        partial(gateway.meter.run, bus),
        partial(tell_evidence, gateway, bus),
        partial(share_placements, gateway, bus),
    ]
    try:
        await run_gateway(settings, gateway, tasks, worker=worker)
    finally:
        with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
            await gateway.limiter.leave()
        await redis.aclose()


def _load(gateway: Gateway, snapshots: Snapshots) -> None:
    table, keys = snapshots.load_table(), snapshots.load_keys()
    if table is not None:
        gateway.table.replace(table)
    if keys is not None:
        gateway.keys.replace(keys)
    _log.info("snapshot.loaded", routes=table is not None, keys=keys is not None)
