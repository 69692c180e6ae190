"""A gateway that stands alone, as people start it: one routes file, one process or several."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.integration.gateway.harness import Answer, Raw, request, until

KEY = "sk-alone"


def endpoint(url: str, **fields: Any) -> dict[str, Any]:
    """One endpoint of a route."""
    return {"url": url, **fields}


def content(
    *urls: str, name: str = "m", workers: int = 1, keys: Any = None, port: int = 0, **route: Any
) -> dict[str, Any]:
    """What a routes file holds: one route, one key."""
    return {
        "listen": {"host": "127.0.0.1", "port": port, "workers": workers},
        "keys": [{"name": "me", "key": KEY}] if keys is None else keys,
        "routes": [{"name": name, "endpoints": [endpoint(url) for url in urls], **route}],
    }


@contextmanager
def free_port() -> Generator[int]:
    """A port that nobody has, for as long as this lasts and most likely some time after."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


class Alone:
    """`python -m cortex_gateway --routes FILE` and what it leaves behind."""

    def __init__(self, folder: Path, port: int) -> None:
        self.file = folder / "routes.yaml"
        self.journal = folder / "journal"
        self.port = port
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, fields: dict[str, Any] | str) -> None:
        """Replace the file as editors do, in one step."""
        new = self.file.with_suffix(".new")
        new.write_text(fields if isinstance(fields, str) else json.dumps(fields, indent=2))
        new.replace(self.file)

    async def start(self, before: Sequence[str] = (), **variables: str) -> None:
        """Start it, and wait until it serves."""
        argv = [*(before or (sys.executable, "-m", "cortex_gateway")), "--routes", str(self.file)]
        environment = os.environ | {"CORTEX_METER__JOURNAL_DIR": str(self.journal), **variables}
        environment.setdefault("CORTEX_HTTP__DRAIN_SECONDS", "2")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, env=environment, stderr=log)
        async with asyncio.timeout(60):
            while not await self.ready():
                assert self._process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.05)

    async def ready(self) -> bool:
        """Whether it serves."""
        try:
            return (await self.get("/readyz")).status == 200
        except (OSError, asyncio.IncompleteReadError):
            return False

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        assert self._process is not None
        return self._process.pid

    def workers(self) -> list[int]:
        """The pids of its workers."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return sorted(map(int, found.split()))

    def signal(self, number: signal.Signals) -> None:
        """Send the process that was started a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self, seconds: float = 30) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, seconds)

    async def stop(self) -> None:
        """Stop it, if it runs, and everything of it."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                await self.ended()
            finally:
                self._process.kill()

    async def connect(self) -> Raw:
        """A raw connection."""
        return Raw(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**24))

    async def get(self, path: str, key: str = KEY) -> Answer:
        """GET on a connection of its own."""
        raw = await self.connect()
        try:
            raw.send(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n".encode())
            return await raw.answer()
        finally:
            raw.close()

    async def post(self, body: Any, key: str = KEY) -> Answer:
        """One chat request on a connection of its own."""
        raw = await self.connect()
        try:
            raw.send(request(body, authorization=f"Bearer {key}" if key else ""))
            return await raw.answer()
        finally:
            raw.close()

    def records(self) -> list[dict[str, Any]]:
        """All usage records that are in files."""
        files = sorted((self.journal / "usage").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]

    def events(self, name: str) -> list[dict[str, Any]]:
        """What was logged under that name."""
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for event in found if event["event"] == name]

    async def event(self, name: str, count: int = 1) -> dict[str, Any]:
        """The so-and-so-manieth event of that name, as soon as it is logged."""
        await until(lambda: len(self.events(name)) >= count)
        return self.events(name)[count - 1]

    async def models(self) -> list[str]:
        """Names and aliases that are served."""
        data = (await self.get("/v1/models")).json["data"]
        return [name for model in data for name in (model["id"], *model["aliases"])]

    async def serves(self, *names: str) -> None:
        """Wait until exactly these are served."""
        async with asyncio.timeout(10):
            while await self.models() != list(names):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(alone: Alone, fields: dict[str, Any], **variables: str) -> AsyncGenerator[Alone]:
    """It runs with this file."""
    alone.write({**fields, "listen": {**fields["listen"], "port": alone.port}})
    await alone.start(**variables)
    try:
        yield alone
    finally:
        await alone.stop()
