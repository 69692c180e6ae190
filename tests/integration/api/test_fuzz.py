"""Whatever is sent to the REST API, it answers in its own words: no 5xx while everything is there."""

import json
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.api.process import ApiUnderTest

_CALM = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_MODEL_FIELDS = [
    "name",
    "served_model_name",
    "aliases",
    "task",
    "engine_type",
    "engine_version",
    "engine_image",
    "mode",
    "replicas",
    "placement",
    "policy",
    "hf_token",
    "local_path",
    "repo_id",
    "filename",
    "revision",
    "mmproj",
    "lora",
    "draft_model_path",
    "draft_tokens_max",
    "ngl",
    "tensor_split",
    "main_gpu",
    "split_mode",
    "context_size",
    "parallel_slots",
    "batch_size",
    "extra_args",
    "env",
    "chat_template",
    "endpoints",
    "tokenizer",
    "tp_size",
    "max_model_len",
    "gpu_memory_utilization",
    "seed",
    "swap_space_gb",
]
_KEY_FIELDS = [
    "name",
    "role",
    "models",
    "requests_per_minute",
    "tokens_per_day",
    "concurrency",
    "networks",
    "priority",
    "expires_at",
]
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["llamacpp", "vllm", "external", "chat", "x", "../x", "/etc/passwd", "*", "10.0.0.0/8"])
)
_JSON = st.recursive(
    _SCALARS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=6,
)
_NUMBERS = st.integers(-(2**70), 2**70).map(str)


def _bodies(fields: list[str], fixed: dict[str, Any]) -> st.SearchStrategy[Any]:
    known = st.dictionaries(st.sampled_from(fields), _JSON, max_size=4)
    return known.map(lambda document: fixed | document) | _JSON


_MODELS = st.sampled_from(
    [
        {"engine_type": "llamacpp", "local_path": "a.gguf"},
        {"engine_type": "vllm", "repo_id": "a/b"},
        {"engine_type": "external", "endpoints": [{"url": "http://h"}]},
    ]
)


def _fine(answer: httpx.Response, sent: object) -> None:
    assert answer.status_code < 500, (answer.status_code, answer.text, sent)
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"], (error, sent)
        assert error["remedy"], (error, sent)


def test_bodies_of_models(api: ApiUnderTest) -> None:
    with api.client() as client:
        client.post("/models", json={"name": "fuzzed", "engine_type": "llamacpp", "local_path": "a.gguf"})

        @_CALM
        @given(_MODELS, st.data())
        def sent(fixed: dict[str, Any], data: st.DataObject) -> None:
            body = data.draw(_bodies(_MODEL_FIELDS, fixed))
            created = client.post("/models", content=json.dumps(body))
            _fine(created, body)
            if created.status_code == 201:
                ident = created.json()["id"]
                _fine(client.post(f"/models/{ident}/dry-run"), body)
                _fine(client.get(f"/models/{ident}"), body)
                _fine(client.post(f"/models/{ident}/start"), body)
                assert client.delete(f"/models/{ident}", params={"stop": "true"}).status_code in (
                    202,
                    204,
                )
            change = data.draw(_bodies(_MODEL_FIELDS, {}))
            _fine(client.patch("/models/fuzzed", content=json.dumps(change)), change)
            _fine(client.post("/models/dry-run", content=json.dumps(body)), body)

        sent()
    assert api.process.poll() is None


def test_bodies_of_keys_and_nodes(api: ApiUnderTest) -> None:
    with api.client() as client:
        key = client.post("/keys", json={"name": "fuzzed"}).json()["id"]

        @_CALM
        @given(_bodies(_KEY_FIELDS, {"name": "k"}), _bodies(["name", "labels"], {"name": "n"}))
        def sent(body: Any, node: Any) -> None:
            _fine(client.post("/keys", content=json.dumps(body)), body)
            _fine(client.patch(f"/keys/{key}", content=json.dumps(body)), body)
            _fine(client.post("/nodes", content=json.dumps(node)), node)
            _fine(client.patch("/nodes/n", content=json.dumps(node)), node)

        sent()


def test_addresses_and_queries(api: ApiUnderTest) -> None:
    with api.client() as client:

        @_CALM
        @given(
            st.sampled_from(["models", "keys", "instances", "nodes", "events", "usage", "status", "audit"]),
            st.text(max_size=12) | _NUMBERS,
            st.dictionaries(
                st.sampled_from(
                    [
                        "cursor",
                        "limit",
                        "state",
                        "q",
                        "task",
                        "role",
                        "revoked",
                        "model",
                        "node",
                        "phase",
                        "since",
                        "kind",
                        "from",
                        "to",
                        "group_by",
                        "engine_type",
                        "tail",
                        "instance",
                        "path",
                        "format",
                    ]
                ),
                st.text(max_size=12)
                | _NUMBERS
                | st.sampled_from(
                    ["WzFd", "WzkwMDcxOTkyNTQ3NDA5OTNd", "WyJhIl0", "2026-01-01T00:00:00Z", "day"]
                )
                | st.just("0001-01-01T00:00:00+23:59"),
                max_size=3,
            ),
        )
        def sent(place: str, ref: str, query: dict[str, str]) -> None:
            query = {"format": "json"} | query if place == "events" else query
            if place == "events" and query["format"] == "sse":
                return
            _fine(client.get(f"/{place}", params=query), (place, query))
            ref = quote(ref, safe="")
            _fine(client.get(f"/{place}/{ref}", params=query), (place, ref))
            for verb in ("logs", "instances", "inspect", "events"):
                _fine(client.get(f"/{place}/{ref}/{verb}", params=query), (place, ref, verb, query))

        sent()
