"""Nodes, instances, logs and dry runs, with a node that speaks as an agent does."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
from cortex_shared.contracts.commands import Start
from cortex_shared.contracts.observed import Reason
from cortex_shared.contracts.plan import Plan
from cortex_shared.nats_auth import Authority, Credentials

from tests.integration.api.node import NodeUnderTest, a_node
from tests.integration.api.process import TOKEN, ApiUnderTest, error_of, eventually, run_api
from tests.servers import ServersUnderTest

TINY: dict[str, Any] = {
    "engine_type": "llamacpp",
    "local_path": "tiny.gguf",
    "context_size": 4096,
    "placement": {"nodes": ["worker"]},
}


def client_of(api: ApiUnderTest) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"{api.url}/api/v1", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20
    )


async def until(client: httpx.AsyncClient, path: str, **wanted: Any) -> dict[str, Any]:
    """The answer as soon as it has these values."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(15):
            while True:
                found = (await client.get(path)).json()
                if all(found.get(name) == value for name, value in wanted.items()):
                    return found
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{path} is still {found}") from None


async def test_a_node_is_shown_with_what_it_says(api: ApiUnderTest) -> None:
    async with client_of(api) as client, a_node(api.nats_url, "shown") as node:
        await node.beat(warnings=[Reason(code="disk", message="little room", remedy="delete something")])
        found = await until(client, "/nodes/shown", cpus=4)
        assert found["labels"] == {"zone": "a"}
        assert found["warnings"][0]["remedy"] == "delete something"
        assert found["programs"][0]["name"] == "llama-server"
        assert found["heartbeat_age_seconds"] < 10
        assert "shown" in [item["name"] for item in (await client.get("/nodes")).json()["items"]]
        for word, value in (("cordon", True), ("cordon", True), ("uncordon", False)):
            answer = await client.post(f"/nodes/shown/{word}")
            assert answer.status_code == 200
            assert answer.json()["cordoned"] is value
        changed = await client.patch("/nodes/shown", json={"labels": {"zone": "b", "rack": "1"}})
        assert changed.json()["labels"] == {"zone": "b", "rack": "1"}
        changed = await client.patch("/nodes/shown", json={"labels": {"zone": None}})
        assert changed.json()["labels"] == {"zone": "a", "rack": "1"}
        assert changed.json()["labels_set"] == {"rack": "1"}
        error = error_of(await client.patch("/nodes/shown", json={"label": {}}), 400)
        assert "labels" in error["message"]


async def test_unknown_nodes_and_names_that_are_none(api: ApiUnderTest) -> None:
    async with client_of(api) as client:
        for method, path in (
            ("GET", "/nodes/nobody"), ("POST", "/nodes/nobody/cordon"), ("DELETE", "/nodes/nobody"),
            ("PATCH", "/nodes/nobody"), ("GET", "/nodes/nobody/inspect?path=x"),
        ):  # fmt: skip
            body: dict[str, Any] | None = {"labels": {}} if method == "PATCH" else None
            error = error_of(await client.request(method, path, json=body), 404)
            assert error["code"] == "nodes.not_found"
        assert error_of(await client.get("/nodes/a.b"), 400)["field"] == "node"
        assert error_of(await client.get("/nodes/*/inspect?path=x"), 400)["field"] == "node"
        error = error_of(await client.post("/nodes", json={"name": "x"}), 409)
        assert error["code"] == "nodes.no_authority"
        assert "CORTEX_NATS_AUTHORITY" in error["remedy"]


async def test_a_model_goes_through_its_states(api: ApiUnderTest) -> None:
    async with client_of(api) as client, a_node(api.nats_url, "worker") as node:
        await until(client, "/nodes/worker", cpus=4)
        made = (await client.post("/models", json={"name": "states", **TINY})).json()
        assert made["warnings"] == []
        started = await client.post("/models/states/start")
        assert started.status_code == 202
        start = await node.next_start(made["id"])
        model = await until(client, "/models/states", state="starting")
        assert [found["phase"] for found in model["instances"]] == ["placed"]
        error = error_of(await client.delete("/nodes/worker"), 409)
        assert error["code"] == "nodes.in_use"
        assert "states" in error["message"]

        await node.run(start, "loading", progress_ratio=0.5)
        model = await until(client, "/models/states", state="loading")
        assert model["instances"][0]["progress_ratio"] == 0.5
        await node.run(start, "ready")
        model = await until(client, "/models/states", state="running")
        assert (model["ready_replicas"], model["port"]) == (1, 20000)
        assert model["container_name"] == f"llamacpp-model-{made['id']}"
        instance = (await client.get(f"/instances/{start.instance}")).json()
        assert (instance["phase"], instance["pid"], instance["node"]) == ("ready", 4711, "worker")
        assert instance["current"] is True
        assert instance["plan"]["program"] == "llama-server"
        listed = (await client.get("/instances", params={"model": "states", "phase": "ready"})).json()
        assert [found["id"] for found in listed["items"]] == [start.instance]
        assert (await client.get("/instances", params={"phase": "failed"})).json()["items"] == []
        on_node = (await client.get("/nodes/worker")).json()["instances"]
        assert [(found["model"], found["phase"]) for found in on_node] == [("states", "ready")]
        of_model = (await client.get("/models/states/instances")).json()["items"]
        assert of_model[0]["id"] == start.instance

        reason = Reason(code="bad_file", message="the file ends early", remedy="copy it again")
        await node.run(start, "failed", reason=reason)
        model = await until(client, "/models/states", state="failed")
        assert model["state_reason"]["remedy"] == "copy it again"
        status = (await client.get("/status")).json()
        assert status["models"]["failed"] == 1

        await node.run(start, "ready")
        await until(client, "/models/states", state="running")
        stopped = await client.post("/models/states/stop")
        assert stopped.status_code == 202
        assert stopped.json()["state"] in ("stopping", "stopped")
        await node.stopped(start)
        await until(client, "/models/states", state="stopped", instances=[])


async def test_a_bad_file_is_refused_when_a_node_says_so(api: ApiUnderTest) -> None:
    async with client_of(api) as client, a_node(api.nats_url, "worker") as node:
        await until(client, "/nodes/worker", cpus=4)
        node.bad_paths["cut.gguf"] = Reason(
            code="gguf_truncated", message="the file ends before its tensors", remedy="copy it again"
        )
        error = error_of(
            await client.post("/models", json={"name": "cut", **TINY, "local_path": "cut.gguf"}), 400
        )
        assert error["field"] == "local_path"
        assert error["code"] == "models.gguf_truncated"
        assert "worker" in error["message"]
        assert error["remedy"] == "copy it again"
        assert (await client.get("/models/cut")).status_code == 404
        made = await client.post("/models", json={"name": "good", **TINY})
        assert made.json()["warnings"] == []
        error = error_of(await client.patch("/models/good", json={"local_path": "cut.gguf"}), 400)
        assert error["field"] == "local_path"
        report = (await client.get("/nodes/worker/inspect", params={"path": "cut.gguf"})).json()
        assert report["problem"]["code"] == "gguf_truncated"


async def test_dry_runs_show_plans_places_and_refusals(api: ApiUnderTest) -> None:
    async with client_of(api) as client, a_node(api.nats_url, "worker"), a_node(api.nats_url, "bare") as bare:
        await bare.beat(programs=[])
        await until(client, "/nodes/worker", cpus=4)
        await until(client, "/nodes/bare", programs=[])
        body = {"name": "dry", **TINY, "placement": {"nodes": ["worker", "bare"]}}
        done = (await client.post("/models/dry-run", json=body)).json()
        assert [replica["node"] for replica in done["replicas"]] == ["worker"]
        plan = done["replicas"][0]["plan"]
        assert plan["program"] == "llama-server"
        assert "{model}" in plan["argv"]
        assert plan["files"][0]["path"] == "tiny.gguf"
        assert done["estimate"]["host_mib"] > 0
        assert "bare" in done["refusals"]
        assert (await client.get("/models/dry")).status_code == 404
        assert error_of(await client.post("/models/dry-run", json={**body, "ctx": 1}), 400)["field"] == "ctx"
        body["placement"] = {"nodes": ["elsewhere"]}
        assert (await client.post("/models", json=body)).status_code == 201
        stored = (await client.post("/models/dry/dry-run")).json()
        assert stored["replicas"] == []
        assert stored["reason"]["message"]
        assert set(stored["refusals"]) >= {"worker", "bare"}
        await client.delete("/nodes/bare")


async def start_ready(client: httpx.AsyncClient, node: NodeUnderTest, name: str) -> str:
    made = (await client.post("/models", json={"name": name, **TINY})).json()
    await client.post(f"/models/{name}/start")
    start = await node.next_start(made["id"])
    await node.run(start, "ready")
    await until(client, f"/models/{name}", state="running")
    return start.instance


async def test_logs_are_read_and_followed(api: ApiUnderTest) -> None:
    async with client_of(api) as client, a_node(api.nats_url, "worker") as node:
        await until(client, "/nodes/worker", cpus=4)
        instance = await start_ready(client, node, "logged")
        node.log = "one\ntwo\nthree\n"
        for path in ("/models/logged/logs", f"/instances/{instance}/logs"):
            answer = await client.get(path, params={"tail": 2})
            assert answer.text == "two\nthree\n"
            assert answer.headers["content-type"].startswith("text/plain")
        got = ""
        async with client.stream("GET", "/models/logged/logs", params={"tail": 1, "follow": True}) as answer:
            assert answer.status_code == 200
            async for text in answer.aiter_text():
                got += text
                if got == "three\n":
                    node.log += "four\n"
                if got.endswith("four\n"):
                    node.log_ended = True
        assert got == "three\nfour\n"
        error = error_of(await client.get("/models/logged/logs", params={"instance": "nope"}), 404)
        assert error["code"] == "logs.no_instance"
        assert error_of(await client.get("/instances/nope/logs"), 404)["code"] == "instances.not_found"
        assert error_of(await client.get("/models/logged/logs", params={"tail": -1}), 400)["field"] == "tail"


async def test_a_silent_node_is_named(api: ApiUnderTest) -> None:
    async with client_of(api) as client:
        async with a_node(api.nats_url, "worker") as node:
            await until(client, "/nodes/worker", cpus=4)
            await start_ready(client, node, "deaf")
        error = error_of(await client.get("/models/deaf/logs"), 503)
        assert error["code"] == "logs.node_silent"
        assert "worker" in error["message"]
        error = error_of(await client.get("/nodes/worker/inspect", params={"path": "x"}), 503)
        assert error["code"] == "nodes.silent"


async def test_an_invited_node_gets_credentials_of_its_own_once(
    servers: ServersUnderTest, tmp_path: Path
) -> None:
    authority = tmp_path / "authority.json"
    authority.write_text(Authority.create().to_json())
    database_url = await servers.fresh_database(scheme="postgresql+asyncpg")
    with run_api(
        database_url=database_url,
        nats_url=servers.nats_url,
        redis_url=servers.redis_url,
        NATS_AUTHORITY=str(authority),
    ) as api:
        async with client_of(api) as client:
            made = await client.post("/nodes", json={"name": "gpu-1", "labels": {"zone": "c"}})
            assert made.status_code == 201, made.text
            file = tmp_path / "gpu-1.creds"
            file.write_text(made.json()["credentials"])
            assert Credentials.read(file).name == "gpu-1"
            shown = await client.get("/nodes/gpu-1")
            assert shown.json()["labels"] == {"zone": "c"}
            assert shown.json()["invited_at"]
            assert "credentials" not in shown.json()
            assert made.json()["credentials"][60:100] not in api.log()
            again = await client.post("/nodes", json={"name": "gpu-1"})
            assert again.json()["credentials"] != made.json()["credentials"]
            assert again.json()["labels"] == {"zone": "c"}
            assert error_of(await client.post("/nodes", json={"name": "a.b"}), 400)["field"] == "name"
            assert (await client.delete("/nodes/gpu-1")).status_code == 204
            assert error_of(await client.get("/nodes/gpu-1"), 404)["code"] == "nodes.not_found"


async def test_what_runs_without_a_model_is_shown_and_can_be_ended(api: ApiUnderTest) -> None:
    async with a_node(api.nats_url, "orphaned") as node:
        plan = Plan(program="llama-server", argv=[], container_name="c")
        start = Start(
            fleet="fleet-of-before", node="orphaned", instance="orphan1", generation=3, model_id=9,
            model="lost", served_model_name="lost", plan=plan, plan_hash="h",
        )  # fmt: skip
        await node.run(start, "ready")
        with api.client() as client:

            def shown() -> list[dict[str, Any]]:
                return client.get("/nodes/orphaned").json().get("instances", [])

            expected = {"id": "orphan1", "model_id": 9, "model": "lost", "phase": "ready", "placed": False}
            eventually(lambda: shown() == [expected])
            assert client.delete("/instances/orphan1").status_code == 202
            await node.stopped(start)
            assert node.stops["orphan1"].fleet == "fleet-of-before"
            assert node.stops["orphan1"].generation == 4
            eventually(lambda: shown() == [])
            error_of(client.delete("/instances/nobody"), 404)
