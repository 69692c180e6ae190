"""Cortex's gateway in its full form, for benchmarks: real Redis and NATS, keys, limits, metering."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import anyio
from cortex_shared.bus import Bus
from cortex_shared.contracts.keys import KeyRecord, hash_key
from cortex_shared.contracts.routes import Endpoint, Route, RoutePolicy, RoutingTable
from cortex_shared.keyring import Keyring
from cortex_shared.redis_connection import connect_redis
from cortex_shared.routing_store import RoutingStore
from cortex_shared.settings import NatsSettings

from tests.bench.load import KEY, LoadFailed, check
from tests.bench.processes import Cores, Process, free_port, running, tail, wait_for_port
from tests.servers import ServersUnderTest

# So high that none is met, and none is off.
_REQUESTS_PER_MINUTE = 100_000_000
_TOKENS_PER_MINUTE = 2_000_000_000
_CONCURRENCY = 100_000


async def publish(servers: ServersUnderTest, urls: list[str], policy: RoutePolicy | None = None) -> None:
    """A route `m` over these engines and one key, in Redis; the streams in NATS."""
    endpoints = [Endpoint(instance=f"bench-{number}", url=url) for number, url in enumerate(urls)]
    route = Route(
        name="m",
        model_id=1,
        task="chat",
        engine="vllm",
        created=1,
        policy=policy or RoutePolicy(),
        endpoints=endpoints,
    )
    now = time.time_ns()
    table = RoutingTable(term=1, version=now, written_at=datetime.now(UTC), routes=[route])
    record = KeyRecord(
        id=1,
        name="bench",
        hash=hash_key(KEY),
        requests_per_minute=_REQUESTS_PER_MINUTE,
        tokens_per_minute=_TOKENS_PER_MINUTE,
        concurrency=_CONCURRENCY,
    )
    redis = connect_redis(servers.redis_url)
    try:
        await RoutingStore(redis).replace(table)
        await Keyring(redis).replace(now, [record])
    finally:
        await redis.aclose()
    async with bus_that_owns_streams(servers.nats_url):
        pass


@asynccontextmanager
async def bus_that_owns_streams(nats_url: str) -> AsyncGenerator[Bus]:
    """A connected bus that has made the streams, as the API's has."""
    bus = Bus(NatsSettings(url=nats_url), name="bench", owns_streams=True)
    async with anyio.create_task_group() as group:
        group.start_soon(bus.run)
        async with asyncio.timeout(30), bus.session():
            pass
        yield bus
        group.cancel_scope.cancel()


@dataclass(frozen=True, slots=True)
class Rig:
    """Where a benchmark runs: a folder for what processes write, the real servers, the cores."""

    folder: Path
    servers: ServersUnderTest
    cores: Cores

    @contextmanager
    def gateway(
        self, *, name: str = "gateway", under: Sequence[str] = (), up_seconds: float = 60, **variables: str
    ) -> Generator[tuple[Process, int]]:
        """A gateway process of a fleet on the gateways' core, and its port; `under`: what runs it, if any."""
        port = free_port()
        environment = {
            "CORTEX_HTTP__PORT": str(port),
            "CORTEX_HTTP__DRAIN_SECONDS": "2",
            "CORTEX_REDIS__URL": self.servers.redis_url,
            "CORTEX_NATS__URL": self.servers.nats_url,
            "CORTEX_ENGINE_SECRET": "bench",
            "CORTEX_SNAPSHOT_DIR": str(self.folder / f"{name}-snapshot"),
            "CORTEX_METER__JOURNAL_DIR": str(self.folder / f"{name}-journal"),
            "CORTEX_LOG__LEVEL": "warning",
            **variables,
        }
        command = [*under, sys.executable, "-m", "cortex_gateway"]
        core = frozenset({self.cores.gateway})
        with running(command, self.folder / f"{name}.log", cores=core, environment=environment) as process:
            wait_for_port(process, port, up_seconds)
            yield process, port

    @contextmanager
    def mock_engine(self, *, name: str = "engine") -> Generator[tuple[Process, int]]:
        """A mock engine on the other cores, and its port."""
        port = free_port()
        command = [sys.executable, "-m", "tests.fakes.mock_engine", str(port)]
        with running(command, self.folder / f"{name}.log", cores=self.cores.rest) as process:
            wait_for_port(process, port)
            yield process, port


async def until_it_serves(process: Process, port: int, seconds: float = 120) -> None:
    """Until answers and streams come through. Raises RuntimeError with the end of its log."""
    until = time.monotonic() + seconds
    while True:
        try:
            await check(port)
        except (OSError, LoadFailed) as error:
            if not process.alive or time.monotonic() > until:
                raise RuntimeError(f"it does not serve: {error}\n{tail(process.log)}") from error
            await asyncio.sleep(0.25)
        else:
            return
