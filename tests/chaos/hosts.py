"""A second host on this machine: a network namespace with a cable to it that can be pulled."""

import asyncio
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.system import engine_program


def namespaces_work() -> bool:
    """Whether this process may make network namespaces."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


async def _run(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    _, stderr = await process.communicate()
    assert process.returncode == 0, f"{' '.join(argv)}: {stderr.decode()}"


@dataclass
class Host:
    """`here` is this machine's address on the cable, `address` the host's own."""

    namespace: str
    cable: str
    far: str
    here: str
    address: str

    async def cut(self) -> None:
        """Pull the cable, at the far end: here the route stays, so that nothing leaves by another one."""
        await _run("ip", "-n", self.namespace, "link", "set", self.far, "down")

    async def heal(self) -> None:
        """Plug the cable in again."""
        await _run("ip", "-n", self.namespace, "link", "set", self.far, "up")

    @asynccontextmanager
    async def agent(
        self, folder: Path, *, nats_port: int, credentials: Path, models: Path
    ) -> AsyncGenerator[int]:
        """A node agent on the host, as an administrator would start it; gives its pid."""
        log = folder / "agent.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *("ip", "netns", "exec", self.namespace, sys.executable, "-m", "cortex_node_agent"),
                *("--nats", f"nats://{self.here}:{nats_port}", "--credentials", str(credentials)),
                *("--address", self.address, "--state", str(folder / "state")),
                *("--model-root", str(models), "--program", f"llama-server={engine_program()}"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield process.pid
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(30):
                    await process.wait()
            await _run(
                *(sys.executable, "-m", "cortex_node_agent", "stop-engines"),
                *("--state", str(folder / "state"), "--grace", "1"),
            )


@asynccontextmanager
async def second_host() -> AsyncGenerator[Host]:
    """Made of a namespace and a pair of interfaces; taken apart at the end."""
    mark = secrets.token_hex(3)
    third = 64 + secrets.randbelow(64)
    far = f"cx{mark}b"
    host = Host(f"cortex-{mark}", f"cx{mark}a", far, f"10.99.{third}.1", f"10.99.{third}.2")
    # Whatever happens to the cable, packets for the host go nowhere else.
    fallback = ("blackhole", f"10.99.{third}.0/24", "metric", "9999")
    await _run("ip", "netns", "add", host.namespace)
    try:
        await _run("ip", "route", "add", *fallback)
        await _run("ip", "link", "add", host.cable, "type", "veth", "peer", "name", far)
        await _run("ip", "link", "set", far, "netns", host.namespace)
        await _run("ip", "address", "add", f"{host.here}/24", "dev", host.cable)
        await _run("ip", "link", "set", host.cable, "up")
        inside = ("ip", "-n", host.namespace)
        await _run(*inside, "address", "add", f"{host.address}/24", "dev", far)
        await _run(*inside, "link", "set", far, "up")
        await _run(*inside, "link", "set", "lo", "up")
        yield host
    finally:
        await _run("ip", "netns", "delete", host.namespace)
        await _run("ip", "route", "delete", *fallback)
