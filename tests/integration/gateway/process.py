"""A gateway as its own process, as a fleet runs it, and what it sends to the bus."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from cortex_shared.bus import Bus, Delivery
from cortex_shared.contracts import usage
from cortex_shared.contracts.usage import RequestUsage, UsageBatch
from cortex_shared.settings import NatsSettings

from tests.integration.gateway.harness import SECRET, Raw


class GatewayProcess:
    """`python -m cortex_gateway` on a port of its own."""

    def __init__(self, folder: Path, *, redis_url: str, nats_url: str, **variables: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._environment = os.environ | {
            "CORTEX_HTTP__PORT": str(self.port),
            "CORTEX_HTTP__DRAIN_SECONDS": "2",
            "CORTEX_REDIS__URL": redis_url,
            "CORTEX_NATS__URL": nats_url,
            "CORTEX_ENGINE_SECRET": SECRET,
            "CORTEX_SNAPSHOT_DIR": str(folder / "snapshot"),
            "CORTEX_METER__JOURNAL_DIR": str(folder / "journal"),
            **variables,
        }
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen([sys.executable, "-m", "cortex_gateway"], env=self._environment)
        async with asyncio.timeout(90):
            while True:
                try:
                    (await self.connect()).close()
                except OSError:
                    assert self._process.poll() is None, "the gateway ended"
                    await asyncio.sleep(0.05)
                else:
                    return

    async def connect(self) -> Raw:
        """A raw connection."""
        return Raw(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**24))

    def workers(self) -> list[int]:
        """The pids of its workers."""
        assert self._process is not None
        pid = self._process.pid
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """kill -9 it, if it runs, and wait for its end."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(20)

    async def ended(self, seconds: float = 20) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, seconds)

    async def stop(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            await self.ended()


class UsageSeen:
    """Every usage record that came over the bus."""

    def __init__(self) -> None:
        self.records: list[RequestUsage] = []

    async def take(self, deliveries: list[Delivery]) -> None:
        """A handler for Bus.consume."""
        for delivery in deliveries:
            self.records += UsageBatch.decode(delivery.data).records


@asynccontextmanager
async def bus_with_usage(nats_url: str) -> AsyncGenerator[tuple[Bus, UsageSeen]]:
    """A bus that owns the streams, as the API's does, and the usage that arrives."""
    bus = Bus(NatsSettings(url=nats_url), name="test", owns_streams=True)
    seen = UsageSeen()
    async with anyio.create_task_group() as group:
        group.start_soon(bus.run)
        group.start_soon(bus.consume, usage.STREAM, "test", seen.take)
        yield bus, seen
        group.cancel_scope.cancel()
