"""Events over REST: the past in pages, the present as a stream."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx

from tests.integration.api.process import TOKEN, ApiUnderTest, error_of, eventually

TINY: dict[str, Any] = {"engine_type": "llamacpp", "local_path": "tiny.gguf"}


def client_of(api: ApiUnderTest) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"{api.url}/api/v1", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20
    )


async def events_of(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Events of a stream, as EventSource would hand them over."""
    found: dict[str, Any] = {}
    async for line in answer.aiter_lines():
        if line.startswith("id: "):
            found["id"] = line[4:]
        elif line.startswith("data: "):
            found["data"] = json.loads(line[6:])
        elif not line and "data" in found:
            yield found
            found = {}


async def take(client: httpx.AsyncClient, number: int, **options: Any) -> list[dict[str, Any]]:
    """The first so many events of a stream."""
    async with asyncio.timeout(15), client.stream("GET", "/events", **options) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        found: list[dict[str, Any]] = []
        async for event in events_of(answer):
            found.append(event)
            if len(found) == number:
                break
        return found


async def make(client: httpx.AsyncClient, name: str) -> int:
    answer = await client.post("/models", json={"name": name, **TINY})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


async def past(client: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    answer = await client.get("/events", params={"format": "json", **params})
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


async def until_past(client: httpx.AsyncClient, number: int, **params: Any) -> list[dict[str, Any]]:
    async with asyncio.timeout(10):
        while len(found := await past(client, **params)) < number:
            await asyncio.sleep(0.02)
    return found


async def test_changes_are_events_with_their_actor(api: ApiUnderTest) -> None:
    async with client_of(api) as client:
        ident = await make(client, "told")
        await client.patch("/models/told", json={"replicas": 2})
        await client.post("/models/told/start")
        await client.post("/models/told/stop")
        found = await until_past(client, 4, model="told", kind="model")
        assert [event["kind"] for event in found][:2] == ["model.created", "model.changed"]
        assert {event["actor"] for event in found} <= {"admin", None}
        assert {event["model_id"] for event in found} == {ident}
        assert [event["sequence"] for event in found] == sorted(event["sequence"] for event in found)
        only = await past(client, model=str(ident), kind="model.started")
        assert [event["kind"] for event in only] == ["model.started"]
        of_model = (await client.get("/models/told/events")).json()["items"]
        assert {event["model_id"] for event in of_model} == {ident}


async def test_a_refused_change_is_no_event(api: ApiUnderTest) -> None:
    async with client_of(api) as client:
        await make(client, "refused")
        await until_past(client, 1, model="refused")
        assert (await client.patch("/models/refused", json={"replicas": -1})).status_code == 400
        assert (await client.delete("/models/none-such")).status_code == 404
        await make(client, "after-refused")
        await until_past(client, 1, model="after-refused")
        assert [event["kind"] for event in await past(client, model="refused")] == ["model.created"]


async def test_the_past_comes_in_pages(api: ApiUnderTest) -> None:
    async with client_of(api) as client:
        await make(client, "paged")
        for number in range(6):
            await client.patch("/models/paged", json={"replicas": number})
        whole = await until_past(client, 7, model="paged", limit=100)
        found: list[dict[str, Any]] = []
        cursor = None
        for _ in range(10):
            params = {
                "format": "json",
                "model": "paged",
                "limit": 3,
                **({"cursor": cursor} if cursor else {}),
            }
            page = (await client.get("/events", params=params)).json()
            found = page["items"] + found
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert found == whole
        since = whole[3]["sequence"]
        assert await past(client, model="paged", since=since) == whole[4:]
        assert await past(client, model="paged", since=whole[4]["at"]) == whole[4:]
        answer = await client.get("/events", params={"format": "json", "since": "yesterday"})
        assert error_of(answer, 400)["field"] == "since"


async def test_a_stream_goes_on_after_the_last_event_that_was_seen(api: ApiUnderTest) -> None:
    async with client_of(api) as client:
        await make(client, "streamed")
        first = (await until_past(client, 1, model="streamed"))[0]["sequence"]
        for number in (2, 3):
            await client.patch("/models/streamed", json={"replicas": number})
        await until_past(client, 3, model="streamed")
        seen = await take(client, 2, headers={"Last-Event-ID": str(first)}, params={"model": "streamed"})
        assert [event["data"]["kind"] for event in seen] == ["model.changed", "model.changed"]
        assert int(seen[0]["id"]) == seen[0]["data"]["sequence"] > first
        again = await take(client, 1, params={"model": "streamed", "since": seen[0]["id"]})
        assert again[0]["id"] == seen[1]["id"]
        by_time = await take(client, 1, params={"model": "streamed", "since": seen[1]["data"]["at"]})
        assert by_time[0]["id"] == seen[1]["id"]


async def test_a_stream_hears_what_happens_now_and_only_what_was_asked_for(api: ApiUnderTest) -> None:
    async with client_of(api) as client:
        await make(client, "now")
        await make(client, "other-now")
        seen: list[dict[str, Any]] = []
        listening = asyncio.Event()

        async def listen() -> None:
            params = {"model": "now", "kind": "model.changed"}
            async with client.stream("GET", "/events", params=params) as answer:
                async for line in answer.aiter_lines():
                    listening.set()
                    if line.startswith("data: "):
                        seen.append(json.loads(line[6:]))
                        return

        task = asyncio.create_task(listen())
        await asyncio.wait_for(listening.wait(), 10)
        number = 1
        # The consumer is made just after the first line: change until one change is heard.
        async with asyncio.timeout(10):
            while not task.done():
                number += 1
                await client.patch("/models/other-now", json={"replicas": number})
                await client.patch("/models/now", json={"replicas": number})
                await asyncio.wait({task}, timeout=0.2)
        assert [event["model"] for event in seen] == ["now"]


async def test_streams_are_bounded(api: ApiUnderTest) -> None:
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        httpx.AsyncClient(base_url=f"{api.url}/api/v1", headers=headers, timeout=20, limits=limits) as client,
        AsyncExitStack() as stack,
    ):
        for _ in range(64):
            answer = await stack.enter_async_context(client.stream("GET", "/events"))
            assert answer.status_code == 200
        error = error_of(await client.get("/events"), 503)
        assert error["code"] == "events.too_many"
    async with client_of(api) as client:
        async with asyncio.timeout(10):
            while True:
                async with client.stream("GET", "/events") as answer:
                    if answer.status_code == 200:
                        break
                await asyncio.sleep(0.05)


def test_audit_is_read_by_administrators(api: ApiUnderTest) -> None:
    with api.client() as client:
        for name in ("one", "two", "three"):
            client.post("/keys", json={"name": f"audited-{name}"})
        viewer = client.post("/keys", json={"name": "looks", "role": "viewer"}).json()["key"]
        page = client.get("/audit", params={"action": "key", "limit": 2}).json()
        assert [item["action"] for item in page["items"]] == ["key.created"] * 2
        assert page["items"][0]["actor"] == "admin"
        older = client.get(
            "/audit", params={"action": "key", "limit": 500, "cursor": page["next_cursor"]}
        ).json()
        ids = [item["id"] for item in page["items"] + older["items"]]
        assert ids == sorted(ids, reverse=True)
        assert older["next_cursor"] is None
        target = page["items"][0]["target"]
        assert len(client.get("/audit", params={"target": target}).json()["items"]) == 1
        assert client.get("/audit", params={"actor": "nobody"}).json()["items"] == []
    with api.client(viewer) as client:
        assert client.get("/audit").status_code == 403


def test_open_streams_do_not_hold_up_a_stop(api: ApiUnderTest) -> None:
    # Last in this module: it ends the module's process.
    with api.client() as client, client.stream("GET", "/events") as answer:
        assert answer.status_code == 200
        next(answer.iter_lines())
        api.process.terminate()
        assert eventually(lambda: api.process.poll() is not None)
    assert api.process.returncode == 0
    assert "timeout graceful shutdown exceeded" not in api.log()  # as uvicorn says when it cuts what is open
