"""How long a change of a key takes to hold everywhere: python -m tests.bench.revoke [--count N].

From the moment before the REST call is sent to the first request that a gateway refuses: real Postgres, NATS
and Redis, one API process, two gateway processes, each asked without pause on a connection of its own.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
from cortex_shared.redis_connection import connect_redis
from cortex_shared.routing_store import RoutingStore

from tests.bench.machine import describe, percentile
from tests.integration.api.process import TOKEN, run_api
from tests.integration.gateway.harness import chat, request, route, table
from tests.integration.gateway.process import GatewayProcess
from tests.servers import ServersUnderTest, run_servers

_SECONDS_MAX = 30.0
_PAUSE_SECONDS = 0.001
# Its route has no engine: who may ask for it is told 503, and nobody works for it.
_MODEL = "none"
_ALLOWED, _NOT_ALLOWED, _UNKNOWN = 503, 403, 401


@dataclass
class Measured:
    """Milliseconds from a call to its effect at each gateway."""

    revoked: list[float] = field(default_factory=list[float])
    narrowed: list[float] = field(default_factory=list[float])


def main(arguments: list[str]) -> int:
    """Always 0: a benchmark reports, it does not judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.revoke")
    parser.add_argument("--count", type=int, default=100, help="keys; each is narrowed, then revoked")
    chosen = parser.parse_args(arguments)
    print(describe())
    with tempfile.TemporaryDirectory(prefix="cortex-bench-", ignore_cleanup_errors=True) as folder:
        asyncio.run(_run(Path(folder), chosen.count))
    return 0


async def _run(folder: Path, count: int) -> None:
    with run_servers(folder / "servers") as servers:
        async with fleet(servers, folder) as (api, gateways):
            measured = await measure(api, gateways, count)
    for what, values in (("revoked", measured.revoked), ("narrowed", measured.narrowed)):
        print(
            f"key {what} to refusal at each of two gateways: p50 {median(values):.1f} ms, "
            f"p99 {percentile(values, 0.99):.1f} ms, worst {max(values):.1f} ms, n={len(values)}"
        )


@asynccontextmanager
async def fleet(
    servers: ServersUnderTest, folder: Path
) -> AsyncGenerator[tuple[httpx.AsyncClient, list[GatewayProcess]]]:
    """A client of an API on a fresh database, and two gateways that follow its keys."""
    await servers.flush_redis()
    nats_url = await servers.fresh_nats()
    database_url = await servers.fresh_database(scheme="postgresql+asyncpg")
    redis = connect_redis(servers.redis_url)
    assert await RoutingStore(redis).replace(table(route(name=_MODEL)))
    await redis.aclose()
    with run_api(database_url=database_url, nats_url=nats_url, redis_url=servers.redis_url) as running:
        gateways = [
            GatewayProcess(
                folder / f"gateway-{number}",
                redis_url=servers.redis_url,
                nats_url=nats_url,
                CORTEX_LOG__LEVEL="error",
            )
            for number in range(2)
        ]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        try:
            for gateway in gateways:
                await gateway.start()
            async with httpx.AsyncClient(
                base_url=f"{running.url}/api/v1", headers=headers, timeout=_SECONDS_MAX
            ) as api:
                yield api, gateways
        finally:
            for gateway in gateways:
                await gateway.stop()


async def measure(api: httpx.AsyncClient, gateways: Sequence[GatewayProcess], count: int) -> Measured:
    """Make a key, narrow it to one model, widen it, revoke it, `count` times."""
    measured = Measured()
    for number in range(count):
        made = (await api.post("/keys", json={"name": f"bench {number}"})).raise_for_status().json()
        ident, key = made["id"], str(made["key"])

        async def narrow(models: list[str], ident: int = ident) -> None:
            (await api.patch(f"/keys/{ident}", json={"models": models})).raise_for_status()

        async def revoke(ident: int = ident) -> None:
            (await api.delete(f"/keys/{ident}")).raise_for_status()

        await _everywhere(gateways, key, _ALLOWED)
        measured.narrowed += await _timed(gateways, key, narrow(["another"]), _NOT_ALLOWED)
        await narrow([_MODEL])
        await _everywhere(gateways, key, _ALLOWED)
        measured.revoked += await _timed(gateways, key, revoke(), _UNKNOWN)
    return measured


async def _timed(
    gateways: Sequence[GatewayProcess], key: str, call: Awaitable[None], status: int
) -> list[float]:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(_until(gateway, key, status)) for gateway in gateways]
        await call
    return [(task.result() - began) * 1000 for task in asking]


async def _everywhere(gateways: Sequence[GatewayProcess], key: str, status: int) -> None:
    for gateway in gateways:
        await _until(gateway, key, status)


async def _until(gateway: GatewayProcess, key: str, status: int) -> float:
    """When a gateway first answers with a status; fails after 30 s."""
    data = request({**chat(), "model": _MODEL}, authorization=f"Bearer {key}")
    raw = await gateway.connect()
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            while True:
                raw.send(data)
                answer = await raw.answer()
                if answer.status == status:
                    return time.perf_counter()
                if answer.headers.get("connection") == "close":
                    raw.close()
                    raw = await gateway.connect()
                await asyncio.sleep(_PAUSE_SECONDS)
    finally:
        raw.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
