"""The API in a soak: makes keys, and counts usage into Postgres."""

import asyncio
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from secrets import token_hex

from cryptography.fernet import Fernet

from tests.bench.ours import Rig
from tests.bench.processes import Process, free_port, running, wait_for_port
from tests.soak.watch import is_ready

_UP_SECONDS = 120.0


class Api:
    """A running one."""

    def __init__(self, process: Process, port: int, token: str) -> None:
        self._process = process
        self._port = port
        self._token = token

    @contextmanager
    def held(self) -> Generator[None]:
        """It does nothing meanwhile: what is to be counted waits."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    async def until_ready(self) -> None:
        """Until it has its database, its bus and Redis."""
        async with asyncio.timeout(_UP_SECONDS):
            while not await is_ready(self._port):
                await asyncio.sleep(0.1)

    def key(self, name: str, **limits: int) -> str:
        """A new key for the gateway."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/api/v1/keys",
            json.dumps({"name": name, **limits}).encode(),
            {"authorization": f"Bearer {self._token}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_UP_SECONDS) as answer:
            return json.load(answer)["key"]


@contextmanager
def run(rig: Rig, database_url: str) -> Generator[Api]:
    """Start it, and end it after."""
    port, token = free_port(), f"sk-cortex-{token_hex(24)}"
    environment = {
        "CORTEX_DATABASE__URL": database_url,
        "CORTEX_NATS__URL": rig.servers.nats_url,
        "CORTEX_REDIS__URL": rig.servers.redis_url,
        "CORTEX_HTTP__PORT": str(port),
        "CORTEX_HTTP__DRAIN_SECONDS": "2",
        "CORTEX_MASTER_KEY": Fernet.generate_key().decode(),
        "CORTEX_ENGINE_SECRET": "an engine secret for a soak",
        "CORTEX_BOOTSTRAP_TOKEN": token,
    }
    command = [sys.executable, "-m", "cortex_api"]
    with running(command, rig.folder / "api.log", cores=rig.cores.rest, environment=environment) as process:
        wait_for_port(process, port, _UP_SECONDS)
        yield Api(process, port, token)
