"""What happens around the gateways in a soak: engines die, Redis and NATS go and come back, also empty."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from tests.bench.processes import Process, free_port, running, tail, wait_for_port
from tests.servers import ServersUnderTest

_AWAY_SECONDS = (0.5, 3.0)


class Engines:
    """Mock engines, each with a ledger for each of its lives."""

    def __init__(self, folder: Path, count: int, cores: frozenset[int]) -> None:
        self._folder = folder
        self._cores = cores
        self.ports = [free_port() for _ in range(count)]
        self.ledgers: list[Path] = []
        self.deaths = 0
        self._lives: dict[int, tuple[ExitStack, Process]] = {}
        for port in self.ports:
            self._start(port)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def _start(self, port: int) -> None:
        ledger = self._folder / f"ledger-{len(self.ledgers)}"
        self.ledgers.append(ledger)
        stack = ExitStack()
        command = [sys.executable, "-m", "tests.fakes.mock_engine", str(port), str(ledger)]
        log = self._folder / f"engine-{len(self.ledgers)}.log"
        process = stack.enter_context(running(command, log, cores=self._cores))
        wait_for_port(process, port)
        self._lives[port] = (stack, process)

    async def die_and_come_back(self, dice: random.Random) -> None:
        """One of them is killed, and is back after a while."""
        port = dice.choice(self.ports)
        stack, process = self._lives[port]
        os.kill(process.pid, signal.SIGKILL)
        self.deaths += 1
        stack.close()
        await asyncio.sleep(dice.uniform(*_AWAY_SECONDS))
        await asyncio.to_thread(self._start, port)

    def problems(self) -> list[str]:
        """What engines say went wrong with them."""
        logs = {log: log.read_text(errors="replace") for log in self._folder.glob("engine-*.log")}
        return [f"{log.name}: {tail(log, 500)}" for log, text in logs.items() if text.strip()]

    def close(self) -> None:
        """End them all."""
        for stack, _ in self._lives.values():
            stack.close()


class Outages:
    """Redis and NATS, killed, restarted and emptied in turn: NATS with usage that is not counted yet."""

    def __init__(
        self,
        servers: ServersUnderTest,
        publish: Callable[[], Awaitable[None]],
        uncounting: Callable[[], AbstractContextManager[None]],
        held_seconds: float,
    ) -> None:
        self._servers = servers
        self._publish = publish
        self._uncounting = uncounting
        self._held_seconds = held_seconds
        self.done: list[str] = []

    async def next(self) -> None:
        """One more of them."""
        turns = [(how, name) for how in ("kill", "restart", "empty") for name in ("redis", "nats")]
        how, name = turns[len(self.done) % len(turns)]
        self.done.append(f"{how} {name}")
        if how == "kill":
            self._servers.kill(name)
            await self._servers.wait(name)
        elif how == "restart":
            await self._servers.restart(name)
        else:
            with self._uncounting() if name == "nats" else nullcontext():
                await asyncio.sleep(self._held_seconds if name == "nats" else 0)
                await self._servers.empty(name)
        if (how, name) == ("empty", "redis"):
            await self._publish()  # as the monitor does, who sees that the table is gone
