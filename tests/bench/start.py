"""How long a start takes: python -m tests.bench.start [--count N] [--home RUNNING].

From the start command to the engine's process: its start time (/proc/PID/stat, in hundredths of a second)
against the moment before the request was sent. From the engine being ready (its own /health, asked without
pause) to the first request routed (the first answer with status 200 of the gateway, asked likewise).
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
from cortex_llamacpp.tiny import write_tiny_model

from tests.bench.machine import describe, percentile
from tests.e2e.system import System, system_in

_MODEL = "bench-start"
_SECONDS_MAX = 60.0
_PAUSE_SECONDS = 0.002


@dataclass
class Measured:
    """Milliseconds of every round."""

    spawned: list[float] = field(default_factory=list[float])
    ready: list[float] = field(default_factory=list[float])
    routed: list[float] = field(default_factory=list[float])


def main(arguments: list[str]) -> int:
    """Always 0: a benchmark reports, it does not judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.start")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--home", type=Path, help="of a system that runs; default: one is started")
    chosen = parser.parse_args(arguments)
    print(describe())
    if chosen.home:
        asyncio.run(_measure(System(chosen.home), chosen.count))
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="cortex-bench-", ignore_cleanup_errors=True) as folder,
        system_in(Path(folder)) as system,
    ):
        system.start()
        asyncio.run(_measure(system, chosen.count))
    return 0


async def _measure(system: System, count: int) -> None:
    write_tiny_model(system.home / "models" / f"{_MODEL}.gguf")
    access, measured = system.access, Measured()
    headers = {"Authorization": f"Bearer {access['admin_token']}"}
    async with (
        httpx.AsyncClient(base_url=f"{access['api_url']}/api/v1", headers=headers, timeout=30) as api,
        httpx.AsyncClient(
            base_url=access["gateway_url"],
            headers={"Authorization": f"Bearer {access['api_key']}"},
            timeout=30,
        ) as gateway,
    ):
        body = {
            "name": _MODEL,
            "engine_type": "llamacpp",
            "local_path": f"{_MODEL}.gguf",
            "context_size": 512,
        }
        (await api.post("/models", json=body)).raise_for_status()
        try:
            for _ in range(count):
                await _round(api, gateway, measured)
        finally:
            await api.delete(f"/models/{_MODEL}", params={"stop": "true"})
    _print("start command to engine process", measured.spawned, 150, 80)
    _print("engine process to engine ready", measured.ready, None, None)
    _print("engine ready to first answer routed", measured.routed, 150, 50)


async def _round(api: httpx.AsyncClient, gateway: httpx.AsyncClient, measured: Measured) -> None:
    began = time.time()
    (await api.post(f"/models/{_MODEL}/start")).raise_for_status()
    async with asyncio.timeout(_SECONDS_MAX), asyncio.TaskGroup() as tasks:
        pid, url = await _engine(api)
        # Only now: asking before there is an engine would take the CPU from what is measured.
        routed = tasks.create_task(_first_answer(gateway))
        ready = tasks.create_task(_healthy(url))
    spawned = _started_at(pid)
    measured.spawned.append((spawned - began) * 1000)
    measured.ready.append((ready.result() - spawned) * 1000)
    measured.routed.append((routed.result() - ready.result()) * 1000)
    (await api.post(f"/models/{_MODEL}/stop")).raise_for_status()
    async with asyncio.timeout(_SECONDS_MAX):
        while (await api.get(f"/models/{_MODEL}")).json()["state"] != "stopped":
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)  # the next start is one at rest


async def _engine(api: httpx.AsyncClient) -> tuple[int, str]:
    """Pid and address of the model's engine, as soon as its node tells them."""
    while True:
        for instance in (await api.get(f"/models/{_MODEL}/instances")).json()["items"]:
            if instance.get("pid") and instance.get("url"):
                return int(instance["pid"]), str(instance["url"])
        await asyncio.sleep(0.02)


async def _healthy(url: str) -> float:
    async with httpx.AsyncClient(base_url=url, timeout=5) as engine:
        while True:
            try:
                if (await engine.get("/health")).status_code == 200:
                    return time.time()
            except httpx.TransportError:
                pass
            await asyncio.sleep(_PAUSE_SECONDS)


async def _first_answer(gateway: httpx.AsyncClient) -> float:
    body = {"model": _MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    while True:
        answer = await gateway.post("/v1/chat/completions", json=body)
        if answer.status_code == 200:
            return time.time()
        await asyncio.sleep(_PAUSE_SECONDS)


def _started_at(pid: int) -> float:
    """Unix time at which a process began."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def _print(what: str, values: list[float], bar: int | None, aim: int | None) -> None:
    line = f"{what}: median {median(values):.0f} ms, p95 {percentile(values, 0.95):.0f} ms, n={len(values)}"
    if bar is not None:
        line += f" (bar {bar} ms: {median(values) / bar:.0%}, aim {aim} ms)"
    print(line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
