"""A second host joins with credentials from a file, serves a replica, is cut off, and comes back."""

import asyncio
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from tests.chaos.hosts import namespaces_work, second_host
from tests.chaos.system import System, running_system

needs_namespaces = pytest.mark.skipif(
    not namespaces_work() and "CI" not in os.environ, reason="network namespaces need root and iproute2"
)


async def ask(system: System) -> httpx.Response:
    async with httpx.AsyncClient(base_url=system.access["gateway_url"], timeout=20) as client:
        return await client.post(
            "/v1/chat/completions",
            headers={"Authorization": f"Bearer {system.access['api_key']}"},
            json={"model": "both", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
        )


async def until(what: str, look: Any, *, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not await look():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


async def verdict(system: System) -> str:
    return (await system.api("GET", "/nodes/second"))["verdict"]


@needs_namespaces
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_second_host_serves_is_cut_off_and_comes_back() -> None:
    with TemporaryDirectory(prefix="cortex-hosts-") as name:
        folder = Path(name)
        async with second_host() as host, running_system(folder / "home", "--listen", host.here) as system:
            invited = await system.api("POST", "/nodes", {"name": "second"})
            credentials = folder / "second.creds"
            credentials.touch(0o600)
            credentials.write_text(invited["credentials"])
            port = json.loads((system.home / "config.json").read_text())["nats_port"]
            models = system.home / "models"
            async with host.agent(folder, nats_port=port, credentials=credentials, models=models):
                await until("second is live", lambda: _is_live(system), seconds=20)
                await _both_serve(system, host.address)
                before = await system.engines()

                await host.cut()
                await until("its endpoint is out", lambda: _routed(system, 1), seconds=45)
                answers = [await ask(system) for _ in range(20)]
                assert {answer.status_code for answer in answers} == {200}
                assert await verdict(system) in {"silent", "lost"}

                await host.heal()
                await until("second is live again", lambda: _is_live(system), seconds=30)
                await until("its endpoint is back", lambda: _routed(system, 2), seconds=30)
                assert await system.engines() == before
                assert (await ask(system)).status_code == 200


async def _is_live(system: System) -> bool:
    response = await system.admin.get("/nodes/second")
    return response.is_success and response.json()["verdict"] == "live"


async def _routed(system: System, count: int) -> bool:
    """Whether so many of the model's instances serve, as the API sees it."""
    return (await system.api("GET", "/models/both"))["ready_replicas"] == count


async def _both_serve(system: System, address: str) -> None:
    body = {
        "name": "both",
        "engine_type": "llamacpp",
        "local_path": "tiny.gguf",
        "replicas": 2,
        "parallel_slots": 8,
    }
    await system.api("POST", "/models", body)
    await system.api("POST", "/models/both/start")
    await system.until_running("both")
    items = (await system.api("GET", "/models/both/instances"))["items"]
    assert len({item["node"] for item in items}) == 2
    assert any(item["url"] is not None and address in item["url"] for item in items)
    answers = [await ask(system) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
