"""Models that others serve, over REST: their keys go to gateways and are shown nowhere."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from cortex_shared.bus import Bus
from cortex_shared.contracts.base import Message
from cortex_shared.contracts.external import BUCKET, EndpointObserved, ExternalObserved
from cortex_shared.contracts.observed import Reason
from cortex_shared.contracts.routes import WANTED_BUCKET, ExternalEndpoint, RouteWanted
from cortex_shared.endpoint_keys import unseal
from cortex_shared.settings import NatsSettings

from tests.integration.api.process import ApiUnderTest, error_of, eventually

KEY, OTHER = "sk-theirs-0123456789", "sk-others-9876543210"
HERE, THERE = "http://127.0.0.1:9", "https://engine.invalid"
FLEET_SECRET = "an engine secret for tests"


@pytest.fixture
async def bus(api: ApiUnderTest) -> AsyncGenerator[Bus]:
    made = Bus(NatsSettings(url=api.nats_url), name="test")
    # A fixture's two halves run in different tasks, which a task group must not.
    task = asyncio.create_task(made.run())
    with anyio.fail_after(10):
        while not made.connected:
            await anyio.sleep(0.01)
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def create(api: ApiUnderTest, name: str, *servers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    with api.client() as client:
        body = {"name": name, "engine_type": "external", "endpoints": list(servers), **fields}
        answer = client.post("/models", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()


def patch(api: ApiUnderTest, name: str, **change: Any) -> dict[str, Any]:
    with api.client() as client:
        answer = client.patch(f"/models/{name}", json=change)
        assert answer.status_code == 200, answer.text
        return answer.json()


def keys_set(model: dict[str, Any]) -> dict[str, bool]:
    return {server["url"]: server["api_key_set"] for server in model["endpoints"]}


async def wanted(bus: Bus, model_id: int) -> list[ExternalEndpoint]:
    """The endpoints as they are wanted now."""
    with anyio.fail_after(10):
        while (found := await bus.get(WANTED_BUCKET, str(model_id))) is None:
            await anyio.sleep(0.02)
    return RouteWanted.decode(found[0]).external


async def keys_wanted(bus: Bus, model_id: int) -> dict[str, str | None]:
    """Keys as gateways read them, by address."""
    return {
        e.url: None
        if e.sealed_key is None
        else unseal(FLEET_SECRET, e.sealed_key, url=e.url, tls_verify=e.tls_verify, ca=e.ca)
        for e in await wanted(bus, model_id)
    }


async def until_wanted(bus: Bus, model_id: int, keys: dict[str, str | None]) -> None:
    with anyio.fail_after(10):
        while await keys_wanted(bus, model_id) != keys:
            await anyio.sleep(0.02)


async def test_a_key_reaches_gateways_and_nobody_else(api: ApiUnderTest, bus: Bus) -> None:
    made = create(api, "sealed", {"url": HERE, "api_key": KEY}, {"url": THERE, "weight": 2})
    assert keys_set(made) == {HERE: True, THERE: False}
    with api.client() as client:
        answers = [
            client.post("/models/sealed/start"),
            client.get("/models/sealed"),
            client.get("/models"),
            client.post("/models/sealed/dry-run"),
            client.patch("/models/sealed", json={"endpoints": [{"url": HERE, "api_key": OTHER}]}),
            client.get("/audit"),
            client.get("/events?format=json"),
        ]
        for answer in answers:
            assert answer.status_code < 300, answer.text
            assert KEY not in answer.text
            assert OTHER not in answer.text
    await until_wanted(bus, made["id"], {HERE: OTHER})
    raw = await bus.get(WANTED_BUCKET, str(made["id"]))
    assert raw is not None
    assert OTHER.encode() not in raw[0]
    assert KEY not in api.log()
    assert OTHER not in api.log()


async def test_a_key_stays_with_its_address(api: ApiUnderTest, bus: Bus) -> None:
    made = create(api, "stays", {"url": HERE, "api_key": KEY})
    with api.client() as client:
        client.post("/models/stays/start")
    await until_wanted(bus, made["id"], {HERE: KEY})
    # What does not speak of the key leaves it.
    assert keys_set(patch(api, "stays", aliases=["kept"])) == {HERE: True}
    assert keys_set(patch(api, "stays", endpoints=[{"url": f"{HERE}/v1", "weight": 3}])) == {HERE: True}
    # What GET answered may be sent back.
    with api.client() as client:
        answered = client.get("/models/stays").json()["endpoints"]
    assert keys_set(patch(api, "stays", endpoints=[*answered, {"url": THERE}])) == {HERE: True, THERE: False}
    await until_wanted(bus, made["id"], {HERE: KEY, THERE: None})
    # Another address is given no key of this one, and the way back has lost it.
    assert keys_set(patch(api, "stays", endpoints=[{"url": THERE}])) == {THERE: False}
    assert keys_set(patch(api, "stays", endpoints=[{"url": HERE}])) == {HERE: False}
    await until_wanted(bus, made["id"], {HERE: None})
    patch(api, "stays", endpoints=[{"url": HERE, "api_key": KEY}])
    assert keys_set(patch(api, "stays", endpoints=[{"url": HERE, "api_key": None}])) == {HERE: False}
    await until_wanted(bus, made["id"], {HERE: None})


def test_errors_beside_a_key_do_not_show_it(api: ApiUnderTest) -> None:
    with api.client() as client:
        for server in ({"url": "nonsense", "api_key": KEY}, {"url": HERE, "api_key": f"{KEY} {KEY}"}):
            body = {"name": "bad", "engine_type": "external", "endpoints": [server]}
            for path in ("/models", "/models/dry-run"):
                answer = client.post(path, json=body)
                assert error_of(answer, 400)["field"].startswith("endpoints.0.")
                assert KEY not in answer.text
    assert KEY not in api.log()


async def test_the_state_is_what_the_monitor_finds(api: ApiUnderTest, bus: Bus) -> None:
    made = create(api, "looked-at", {"url": HERE}, {"url": THERE})
    with api.client() as client:
        client.post("/models/looked-at/start")

        def shown() -> dict[str, Any]:
            return client.get("/models/looked-at").json()

        ids = [endpoint.id for endpoint in await wanted(bus, made["id"])]
        reason = Reason(code="external.key_refused", message="it refuses the key", remedy="set it anew")

        async def observe(*states: str) -> None:
            found = [
                EndpointObserved(
                    id=ident,
                    url=url,
                    state=state,
                    since=datetime.now(UTC),
                    reason=reason if state == "failed" else None,
                    latency_seconds=0.25,
                    checked_at=datetime(2026, 1, 1, tzinfo=UTC),
                )
                for ident, url, state in zip(ids, (HERE, THERE), states, strict=True)
            ]
            told: Message = ExternalObserved(model_id=made["id"], endpoints=found)
            await bus.put(BUCKET, str(made["id"]), told)

        assert (shown()["state"], shown()["ready_replicas"]) == ("starting", 0)
        await observe("running", "failed")
        eventually(lambda: shown()["state"] == "degraded")
        found = shown()
        assert found["state_reason"]["remedy"] == "set it anew"
        assert found["ready_replicas"] == 1
        first, second = found["endpoints"]
        assert (first["state"], first["latency_seconds"], first["reason"]) == ("running", 0.25, None)
        assert first["checked_at"] == "2026-01-01T00:00:00Z"
        assert (second["state"], second["reason"]["code"]) == ("failed", "external.key_refused")
        assert [m["name"] for m in client.get("/models?state=degraded").json()["items"]] == ["looked-at"]
        await observe("from_the_future", "running")
        eventually(lambda: shown()["endpoints"][0]["state"] == "starting")
        await observe("failed", "failed")
        eventually(lambda: shown()["state"] == "failed")
        client.post("/models/looked-at/stop")
        eventually(lambda: shown()["state"] == "stopped")
        assert {server["state"] for server in shown()["endpoints"]} == {"starting"}


def test_warnings(api: ApiUnderTest) -> None:
    far = {"url": "http://engine.invalid", "api_key": KEY, "tls_verify": False}
    made = create(
        api,
        "doubtful",
        far,
        policy={"fallbacks": ["nobody", "trusted"], "splits": [{"to": "nobody-else", "share": 0.1}]},
        served_model_name="dear",
    )
    told = " ".join(made["warnings"])
    assert "unencrypted" in told
    assert "tls_verify" in told
    assert "'nobody'" in told
    assert "'nobody-else'" in told
    create(api, "trusted", {"url": HERE}, policy={"splits": [{"to": "dear", "share": 0.5}]})
    changed = patch(api, "doubtful", policy={"fallbacks": None, "splits": [{"to": "trusted", "share": 0.1}]})
    assert any("split back" in warning for warning in changed["warnings"])
    with api.client() as client:
        assert any("split back" in w for w in client.post("/models/doubtful/dry-run").json()["warnings"])
