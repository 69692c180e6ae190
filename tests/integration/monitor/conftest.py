"""The servers' fixtures, and a bench with a monitor to run on them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from cortex_shared.bus import Bus, Mirror
from cortex_shared.contracts import observed, routes, verdicts
from cortex_shared.contracts.base import Message
from cortex_shared.contracts.evidence import GatewayEvidence, evidence_subject
from cortex_shared.contracts.observed import NodeObserved
from cortex_shared.contracts.routes import RouteWanted, RoutingTable, WantedManifest
from cortex_shared.contracts.verdicts import LEASE, MonitorLease, NodeVerdict
from cortex_shared.errors import Unavailable
from cortex_shared.redis_connection import connect_redis
from cortex_shared.routing_store import RoutingStore
from cortex_shared.settings import NatsSettings

from tests.servers import ServersUnderTest, servers

__all__ = ["bench", "servers"]


class Bench:
    """Acts as API, agents and gateway towards monitors that run as processes of their own."""

    def __init__(self, servers: ServersUnderTest, bus: Bus, mirror: Mirror, folder: Path) -> None:
        self.servers = servers
        self.bus = bus
        self.verdicts = mirror
        self.redis = connect_redis(servers.redis_url)
        self.store = RoutingStore(self.redis)
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        """A monitor with these settings: `LIVENESS__LOST_SECONDS="2"`."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")},
            "CORTEX_NATS__URL": self.servers.nats_url,
            "CORTEX_REDIS__URL": self.servers.redis_url,
            "CORTEX_HTTP__PORT": "0",
            "CORTEX_SETTLE_SECONDS": "0.5",
            **{f"CORTEX_{name}": value for name, value in settings.items()},
        }
        with self.log.open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", "cortex_monitor"], env=environment, stderr=log)
        self.processes.append(process)
        return process

    @property
    def log(self) -> Path:
        """What the monitors wrote."""
        return self._folder / "monitor.log"

    async def put(self, bucket: str, key: str, message: Message) -> None:
        """Store it, as soon as NATS is there."""
        while True:
            try:
                await self.bus.put(bucket, key, message)
            except Unavailable:
                await anyio.sleep(0.05)
            else:
                return

    async def want(self, *wishes: RouteWanted, epoch: int = 1) -> None:
        """Wish for routes, and list them."""
        for wish in wishes:
            await self.put(routes.WANTED_BUCKET, str(wish.model_id), wish)
        listed = WantedManifest(fleet="fleet-1", epoch=epoch, models=[wish.model_id for wish in wishes])
        await self.put(routes.WANTED_BUCKET, routes.WANTED_MANIFEST, listed)

    async def hear(self, node: NodeObserved) -> None:
        """A node's heart-beat."""
        await self.put(observed.BUCKET, node.node, node)

    async def tell(self, told: GatewayEvidence) -> None:
        """A gateway's evidence; lost while NATS is away, as a gateway's would be."""
        with suppress(Unavailable):
            await self.bus.publish(evidence_subject(told.gateway), told)

    async def table(
        self, holds: Callable[[RoutingTable], bool] = lambda _: True, *, seconds: float = 20
    ) -> RoutingTable:
        """The table, as soon as it is as asked."""
        table = None
        with anyio.move_on_after(seconds):
            while True:
                with suppress(Unavailable):
                    table = await self.store.read()
                    if table is not None and holds(table):
                        return table
                await anyio.sleep(0.01)
        log = self.log.read_text()[-4000:]
        raise AssertionError(f"no such table within {seconds} s; the last: {table!r}\n{log}")

    async def verdict(self, node: str, verdict: str, *, seconds: float = 20) -> NodeVerdict:
        """The verdict on a node, as soon as it is as asked."""
        with anyio.fail_after(seconds):
            while True:
                entry = self.verdicts.entries.get(node)
                if entry is not None and (found := NodeVerdict.decode(entry.data)).verdict == verdict:
                    return found
                await anyio.sleep(0.02)

    async def lease(self, *, not_held_by: str = "", seconds: float = 10) -> MonitorLease:
        """The lease, as soon as another holds it."""
        with anyio.fail_after(seconds):
            while True:
                entry = self.verdicts.entries.get(LEASE)
                if entry is not None:
                    lease = MonitorLease.decode(entry.data)
                    if lease.holder not in ("", not_held_by):
                        return lease
                await anyio.sleep(0.01)

    async def ready(self, process: subprocess.Popen[bytes], *, seconds: float = 20) -> None:
        """Until a monitor follows NATS: its connection is there and its mirrors have been read."""
        count = self.processes.index(process) + 1
        with anyio.fail_after(seconds):
            while self.log.read_text().count('"watch.hears"') < count:
                assert process.poll() is None, self.log.read_text()[-4000:]
                await anyio.sleep(0.02)

    def end(self) -> None:
        """End what was started."""
        for process in self.processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(10)


@pytest.fixture
async def bench(servers: ServersUnderTest, tmp_path: Path) -> AsyncGenerator[Bench]:
    """A bench on empty servers."""
    await servers.flush_redis()
    await servers.fresh_nats()
    bus = Bus(NatsSettings(url=servers.nats_url), name="bench", owns_streams=True)
    mirror = Mirror.of_bucket(bus, verdicts.BUCKET)
    made = Bench(servers, bus, mirror, tmp_path)

    async def hold() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(bus.run)
            group.start_soon(mirror.run)

    # A fixture's two halves run in different tasks, which a task group must not.
    held = asyncio.create_task(hold())
    try:
        await mirror.wait_synced()
        yield made
    finally:
        made.end()
        held.cancel()
        with suppress(asyncio.CancelledError):
            await held
        await made.redis.aclose()
