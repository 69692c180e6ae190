"""Models over REST: bodies, errors, pages, changes, states."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.api.process import ApiUnderTest, error_of, eventually

TINY: dict[str, Any] = {"engine_type": "llamacpp", "local_path": "tiny.gguf"}


def create(api: ApiUnderTest, name: str, **more: Any) -> dict[str, Any]:
    with api.client() as client:
        answer = client.post("/models", json={"name": name, **TINY, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_new_model_is_flat_stopped_and_has_its_defaults(api: ApiUnderTest) -> None:
    made = create(api, "flat", context_size=8192, placement={"labels": {"zone": "a"}})
    assert made["served_model_name"] == "flat"
    assert made["context_size"] == 8192
    assert made["state"] == "stopped"
    assert made["state_reason"] is None
    assert made["generation"] == 1
    assert made["instances"] == []
    assert made["placement"] == {"nodes": [], "labels": {"zone": "a"}}
    assert made["policy"]["limits"]["connect_seconds"] == 2
    assert made["container_name"] == f"llamacpp-model-{made['id']}"
    assert made["created_at"].endswith("Z")
    assert any("no node could be asked" in warning for warning in made["warnings"])
    with api.client() as client:
        by_id = client.get(f"/models/{made['id']}").json()
        by_name = client.get("/models/flat").json()
    assert by_id == by_name
    assert by_id == {key: value for key, value in made.items() if key != "warnings"}


def test_an_answer_sent_back_names_the_read_only_field(api: ApiUnderTest) -> None:
    made = create(api, "back")
    with api.client() as client:
        error = error_of(client.post("/models", json={**made, "name": "back2"}), 400)
    assert error["code"] == "body.read_only"
    assert error["field"] in made


@pytest.mark.parametrize(
    ("change", "status", "code", "field", "said"),
    [
        ({"contextsize": 4}, 400, "body.unknown_field", "contextsize", "context_size"),
        ({"tp_size": 2}, 400, "body.unknown_field", "tp_size", "vllm"),
        ({"policy": {"limits": {"conect_seconds": 1}}}, 400, "body.unknown_field",
         "policy.limits.conect_seconds", "connect_seconds"),
        ({"placement": {"node": []}}, 400, "body.unknown_field", "placement.node", "nodes"),
        ({"replicas": "2"}, 400, "body.invalid", "replicas", "integer"),
        ({"replicas": -1}, 400, "body.invalid", "replicas", "greater"),
        ({"context_size": "many"}, 400, "settings.invalid", "context_size", "integer"),
        ({"engine_type": "lamacpp"}, 400, "models.unknown_engine", "engine_type", "llamacpp"),
        ({"engine_type": None}, 400, "body.missing", "engine_type", "engine_type"),
        ({"name": "123"}, 400, "models.name_is_number", "name", "id"),
        ({"name": "a/b"}, 400, "body.invalid", "name", "pattern"),
        ({"name": None}, 400, "body.invalid", "name", "string"),
        ({"local_path": "../up.gguf"}, 400, "models.path_escapes", "local_path", "leaves"),
        ({"local_path": None}, 400, "settings.source", "local_path", "neither"),
        ({"aliases": ["x", "x"]}, 400, "models.alias_twice", "aliases", "repeat"),
        ({"task": "chatting"}, 400, "body.invalid", "task", "chat"),
        ({"state": "running"}, 400, "body.read_only", "state", "read-only"),
        ({"name": "nul\0"}, 400, "body.nul", None, "NUL"),
    ],
)  # fmt: skip
def test_a_bad_body_is_refused_by_name(
    api: ApiUnderTest, change: dict[str, Any], status: int, code: str, field: str | None, said: str
) -> None:
    with api.client() as client:
        error = error_of(client.post("/models", json={"name": "bad", **TINY, **change}), status)
        assert client.get("/models/bad").status_code == 404
    assert error["code"] == code
    assert error["field"] == field
    assert said in f"{error['message']} {error['remedy']}"
    assert error["remedy"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "body.not_json"),
        (b"", 400, "body.missing"),
        (b"[1]", 400, "body.not_object"),
        (b"null", 400, "body.not_object"),
        (b'{"name": NaN}', 400, "body.not_json"),
        (b'{"a": "' + b"x" * 2**20 + b'"}', 413, "body.too_large"),
        (b"[" * 100_000, 400, "body.not_json"),
        (b'{"name": "\xff"}', 400, "body.not_json"),
    ],
)
def test_what_is_no_json_object_is_refused(api: ApiUnderTest, body: bytes, status: int, code: str) -> None:
    with api.client() as client:
        assert error_of(client.post("/models", content=body), status)["code"] == code
        # Bodies that the framework parses answer alike.
        assert error_of(client.post("/keys", content=body), status)["code"] == code


def test_names_are_unique(api: ApiUnderTest) -> None:
    create(api, "unique")
    create(api, "other")
    with api.client() as client:
        assert (
            error_of(client.post("/models", json={"name": "unique", **TINY}), 409)["code"]
            == "models.name_taken"
        )
        error = error_of(client.patch("/models/other", json={"name": "unique"}), 409)
    assert error["field"] == "name"


def test_pages_filters_and_search(api: ApiUnderTest) -> None:
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        create(api, name, task="embedding")
    found: list[str] = []
    with api.client() as client:
        cursor = None
        for _ in range(5):
            params = {"q": "PAGE-", "limit": 2, **({"cursor": cursor} if cursor else {})}
            page = client.get("/models", params=params).json()
            assert len(page["items"]) <= 2
            found += [item["name"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert found == names
        stopped = client.get("/models", params={"q": "page-", "state": "stopped", "limit": 2}).json()
        assert [item["name"] for item in stopped["items"]] == names[:2]
        assert client.get("/models", params={"q": "page-", "state": "running"}).json()["items"] == []
        assert client.get("/models", params={"q": "page-", "task": "chat"}).json()["items"] == []
        assert client.get("/models", params={"q": "page-", "engine_type": "vllm"}).json()["items"] == []
        # A percent sign is text here, not a pattern.
        assert client.get("/models", params={"q": "page%"}).json()["items"] == []
        assert error_of(client.get("/models", params={"cursor": "rubbish"}), 400)["code"] == "page.bad_cursor"
        assert error_of(client.get("/models", params={"limit": 0}), 400)["field"] == "limit"
        assert error_of(client.get("/models", params={"state": "ready"}), 400)["field"] == "state"


def test_a_patch_merges_null_resets_and_generations_follow(api: ApiUnderTest) -> None:
    create(api, "patched", context_size=8192, policy={"concurrency": 3, "queue_max": 5})
    with api.client() as client:

        def patch(**change: Any) -> dict[str, Any]:
            answer = client.patch("/models/patched", json=change)
            assert answer.status_code == 200, answer.text
            return answer.json()

        assert patch(context_size=4096)["generation"] == 2
        assert patch(context_size=4096)["generation"] == 2
        reset = patch(context_size=None, policy={"concurrency": None})
        assert reset["generation"] == 3
        assert reset["policy"]["concurrency"] == 0
        assert reset["policy"]["queue_max"] == 5
        more = patch(replicas=3, aliases=["p2"], placement={"nodes": ["n1"]})
        assert (more["replicas"], more["aliases"], more["placement"]["nodes"]) == (3, ["p2"], ["n1"])
        assert more["generation"] == 3
        renamed = patch(name="renamed")
        assert renamed["served_model_name"] == "patched"
        assert client.get("/models/patched").status_code == 404
        client.patch("/models/renamed", json={"name": "patched"})
        error = error_of(client.patch("/models/patched", json={"engine_type": "vllm"}), 409)
        assert error["code"] == "models.engine_type_fixed"
        error = error_of(client.patch("/models/patched", json={"local_path": None}), 400)
        assert error["field"] == "local_path"
        assert patch()["local_path"] == "tiny.gguf"


def test_a_token_is_written_and_never_read(api: ApiUnderTest) -> None:
    secret = "hf_never_to_be_seen"
    made = create(api, "secret", hf_token=secret)
    assert made["hf_token_set"] is True
    with api.client() as client:
        changed = client.patch("/models/secret", json={"context_size": 4096})
        assert changed.json()["hf_token_set"] is True
        shown = client.get("/models/secret")
        events = client.get("/events", params={"format": "json"})
        gone = client.patch("/models/secret", json={"hf_token": None})
        assert gone.json()["hf_token_set"] is False
    for answer in (changed, shown, events, gone):
        assert secret not in answer.text
        assert "hf_token_encrypted" not in answer.text
    assert secret not in api.log()


def test_start_and_stop_are_idempotent_and_say_so(api: ApiUnderTest) -> None:
    create(api, "idem")
    with api.client() as client:
        stopped = client.post("/models/idem/stop")
        assert stopped.status_code == 200
        assert "already stopped" in stopped.json()["message"]
        first = client.post("/models/idem/start")
        assert first.status_code == 202
        assert first.json()["desired_state"] == "running"
        again = client.post("/models/idem/start")
        assert again.status_code == 200
        assert "already started" in again.json()["message"]
        error = error_of(client.delete("/models/idem"), 409)
        assert error["code"] == "models.running"
        assert "stop=true" in error["remedy"]
        assert client.post("/models/idem/stop").status_code == 202
        assert client.delete("/models/idem").status_code == 204
        assert error_of(client.get("/models/idem"), 404)["code"] == "models.not_found"
        for method, path in (("POST", "start"), ("POST", "stop"), ("GET", "logs"), ("GET", "events")):
            assert error_of(client.request(method, f"/models/idem/{path}"), 404)["code"] == "models.not_found"


def test_a_served_name_is_one_running_models_alone(api: ApiUnderTest) -> None:
    create(api, "serve-a", served_model_name="chat", aliases=["gpt"])
    create(api, "serve-b", served_model_name="chat")
    create(api, "serve-c", served_model_name="c", aliases=["x", "gpt"])
    with api.client() as client:
        assert client.post("/models/serve-a/start").status_code == 202
        error = error_of(client.post("/models/serve-b/start"), 409)
        assert error["code"] == "models.served_name_taken"
        assert "serve-a" in error["message"]
        error = error_of(client.post("/models/serve-c/start"), 409)
        assert error["field"] == "aliases"
        body = {"name": "serve-d", "served_model_name": "gpt", **TINY}
        assert error_of(client.post("/models", json=body), 409)["field"] == "served_model_name"
        error = error_of(client.patch("/models/serve-c", json={"served_model_name": "chat"}), 409)
        assert "serve-a" in error["message"]
        assert client.post("/models/serve-a/stop").status_code == 202
        assert client.post("/models/serve-b/start").status_code == 202
        client.post("/models/serve-b/stop")


def test_deleting_a_started_model_stops_it_first(api: ApiUnderTest) -> None:
    create(api, "going")
    with api.client() as client:
        client.post("/models/going/start")
        answer = client.delete("/models/going", params={"stop": "true"})
        assert answer.status_code == 202
        assert answer.json()["desired_state"] == "stopped"
        eventually(lambda: client.get("/models/going").status_code == 404)


def test_ids_beyond_any_are_not_found(api: ApiUnderTest) -> None:
    with api.client() as client:
        for ref in ("0", "2147483648", "9" * 40, "no-such", "%00", "²"):
            assert client.get(f"/models/{ref}").status_code in (400, 404), ref


def test_an_external_model_is_started_without_instances(api: ApiUnderTest) -> None:
    with api.client() as client:
        body = {"name": "ext", "engine_type": "external", "endpoints": [{"url": "http://127.0.0.1:9"}]}
        assert client.post("/models", json=body).status_code == 201
        started = client.post("/models/ext/start").json()
        assert started["state"] == "starting"  # until a monitor has looked
        assert started["container_name"] is None
        client.delete("/models/ext", params={"stop": "true"})


def at_once(api: ApiUnderTest, requests: list[tuple[str, str, Any]]) -> list[int]:
    """Statuses of requests that are sent at the same time."""

    def send(request: tuple[str, str, Any]) -> int:
        with api.client() as client:
            answer = client.request(request[0], request[1], json=request[2])
        assert answer.status_code < 500, answer.text
        return answer.status_code

    with ThreadPoolExecutor(len(requests)) as pool:
        return sorted(pool.map(send, requests))


def test_of_two_creates_at_once_one_wins(api: ApiUnderTest) -> None:
    requests: list[tuple[str, str, Any]] = [("POST", "/models", {"name": "race", **TINY})] * 6
    assert at_once(api, requests) == [201, 409, 409, 409, 409, 409]


def test_of_two_that_start_at_once_under_one_name_one_wins(api: ApiUnderTest) -> None:
    for number in range(4):
        create(api, f"same-{number}", aliases=["same"])
    statuses = at_once(api, [("POST", f"/models/same-{number}/start", None) for number in range(4)])
    assert statuses == [202, 409, 409, 409]


def test_starts_and_stops_at_once_end_in_one_of_both(api: ApiUnderTest) -> None:
    create(api, "both-ways")
    requests: list[tuple[str, str, Any]] = []
    for _ in range(4):
        requests += [("POST", "/models/both-ways/start", None), ("POST", "/models/both-ways/stop", None)]
    assert set(at_once(api, requests)) <= {200, 202}
    with api.client() as client:
        assert client.get("/models/both-ways").json()["desired_state"] in ("running", "stopped")
