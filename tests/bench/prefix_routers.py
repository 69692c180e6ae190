"""The routers that the prefix benchmark compares, each started as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cortex_gateway.snapshot import Snapshots
from cortex_shared.contracts.keys import KeyRecord, hash_key
from cortex_shared.contracts.routes import Endpoint, Route, RoutePolicy, RoutingTable

from tests.bench.load import KEY
from tests.bench.peers import environment
from tests.bench.processes import Process, free_port, running, wait_for_port

SMG = "smg cache_aware"
SMG_VERSION = "1.13.0"
OURS = ("prefix", "least", "round_robin")


def problem_with_smg() -> str | None:
    """Why it cannot be run here; None: it can. It is installed on first use."""
    try:
        environment("smg", SMG_VERSION)
    except (OSError, subprocess.SubprocessError) as error:
        return f"smg {SMG_VERSION} cannot be installed: {error}"
    return None


@contextmanager
def router(name: str, engines: list[str], folder: Path) -> Generator[tuple[Process, int]]:
    """A router of that name (SMG, or a balance of our gateway) before these engines, and its port."""
    port = free_port()
    cores = frozenset(os.sched_getaffinity(0))
    if name == SMG:
        command, variables = _smg(port, engines), None
    else:
        command, variables = [sys.executable, "-m", "cortex_gateway"], _gateway(name, port, engines, folder)
    with running(command, folder / "router.log", cores=cores, environment=variables) as process:
        wait_for_port(process, port)
        yield process, port


def _smg(port: int, engines: list[str]) -> list[str]:
    # What is not of the place it runs in is as it comes: its makers know best.
    program = environment("smg", SMG_VERSION) / "bin/smg"
    command = [str(program), "launch", "--policy", "cache_aware", "--worker-urls", *engines]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return [*command, "--disable-tokenizer-autoload"]


def _gateway(balance: str, port: int, engines: list[str], folder: Path) -> dict[str, str]:
    route = Route(
        name="m",
        model_id=1,
        task="chat",
        engine="vllm",
        created=1,
        policy=RoutePolicy(balance=balance),
        endpoints=[Endpoint(instance=f"i{n}", url=url) for n, url in enumerate(engines)],
    )
    snapshots = Snapshots(folder)
    snapshots.save_table(RoutingTable(term=1, version=1, written_at=datetime.now(UTC), routes=[route]))
    snapshots.save_keys([KeyRecord(id=1, name="bench", hash=hash_key(KEY))])
    return {
        "CORTEX_SNAPSHOT_DIR": str(folder),
        "CORTEX_METER__JOURNAL_DIR": f"{folder}/journal",
        "CORTEX_HTTP__PORT": str(port),
        "CORTEX_HTTP__DRAIN_SECONDS": "1",
        "CORTEX_REDIS__URL": "redis://127.0.0.1:1/0",
        "CORTEX_NATS__URL": "nats://127.0.0.1:1",
        "CORTEX_ENGINE_SECRET": "bench",
        "CORTEX_LOG__LEVEL": "error",
    }
