"""A second host joins with credentials from a file, serves a replica, is cut off, and comes back."""

import asyncio
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from cortex_shared.engine_keys import engine_key

from tests.chaos.hosts import Host, namespaces_work, second_host
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
                await until("second is live", lambda: _is(system, "live"), seconds=20)
                await _both_serve(system, host.address)
                await _a_short_cut(system, host)
                await _a_long_cut(system, host)


async def _a_short_cut(system: System, host: Host) -> None:
    """Too short for a verdict of death: others answer meanwhile, and the same engine serves on."""
    before = await system.engines()
    await host.cut()
    answers = [await ask(system) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    await until("second is silent", lambda: _is(system, "silent"), seconds=20)
    await host.heal()
    await until("second is live again", lambda: _is(system, "live"), seconds=20)
    assert await system.engines() == before
    await _served_by_both(system)


async def _a_long_cut(system: System, host: Host) -> None:
    """Long enough to be given up: its replica is placed elsewhere, and it is welcome when it comes back."""
    await host.cut()
    await until("second is lost", lambda: _is(system, "lost"), seconds=60)
    await until("its replica runs elsewhere", lambda: _placed(system, nodes=1), seconds=30)
    answers = [await ask(system) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    await host.heal()
    await until("second is live again", lambda: _is(system, "live"), seconds=30)
    await until("two replicas serve", lambda: _placed(system), seconds=30)
    assert (await ask(system)).status_code == 200


async def _is(system: System, verdict: str) -> bool:
    response = await system.admin.get("/nodes/second")
    return response.is_success and response.json()["verdict"] == verdict


async def _placed(system: System, *, nodes: int | None = None) -> bool:
    """Whether the model has its two replicas running, and no more; on so many nodes, if given."""
    model = await system.api("GET", "/models/both")
    items = (await system.api("GET", "/models/both/instances"))["items"]
    ready = [item for item in items if item["phase"] == "ready" and item["desired"] == "run"]
    fits = nodes is None or len({item["node"] for item in ready}) == nodes
    return model["state"] == "running" and len(ready) == 2 and fits


async def _served_by_both(system: System) -> None:
    """Both endpoints are in use: each engine counts requests of its own."""

    async def both_counted() -> bool:
        items = (await system.api("GET", "/models/both/instances"))["items"]
        before = [await _tokens_written(system, item) for item in items]
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(ask(system))
        after = [await _tokens_written(system, item) for item in items]
        return all(now > then for now, then in zip(after, before, strict=True))

    await until("both serve", both_counted, seconds=30)


async def _tokens_written(system: System, item: dict[str, Any]) -> float:
    """What the engine counted, asked of itself with its own key."""
    secret = (system.home / "secrets" / "engine-secret").read_text().strip()
    headers = {"Authorization": f"Bearer {engine_key(secret, item['id'])}"}
    async with httpx.AsyncClient(headers=headers) as client:
        text = (await client.get(f"{item['url']}/metrics")).text
    return next(
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("llamacpp:tokens_predicted_total")
    )


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
