"""The OpenAPI document: fit to make clients from, and true to what is answered."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.integration.api.process import ApiUnderTest

METHODS = ("get", "post", "patch", "delete", "put")


@pytest.fixture(scope="module")
def document(api: ApiUnderTest) -> dict[str, Any]:
    with api.client(None) as client:
        return client.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    ]


def check(document: dict[str, Any], name: str, value: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    Draft202012Validator(schema).validate(value)


def test_every_operation_is_named_described_and_has_its_errors(document: dict[str, Any]) -> None:
    names: list[str] = []
    for where, operation in operations(document):
        names.append(operation["operationId"])
        assert operation["summary"], where
        assert operation["description"], where
        assert len(operation["tags"]) == 1, where
        assert operation["security"], where
        for status in ("400", "401", "403", "500", "503"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (where, status)
        assert "422" not in operation["responses"], where
        if "{model}" in where or "{node}" in where or "{id}" in where or "{instance}" in where:
            assert "404" in operation["responses"], where
    assert len(names) == len(set(names))
    assert len(names) >= 30


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():  # pyright: ignore[reportUnknownVariableType] (JSON)
                if name == "$ref":
                    assert inner.removeprefix("#/components/schemas/") in document["components"]["schemas"]
                walk(inner)
        elif isinstance(value, list):
            for inner in value:  # pyright: ignore[reportUnknownVariableType] (JSON)
                walk(inner)

    walk(document)


def test_models_are_a_one_of_over_the_engines(document: dict[str, Any]) -> None:
    parts = document["components"]["schemas"]
    for name in ("Model", "ModelCreate"):
        mapping = parts[name]["discriminator"]["mapping"]
        assert set(mapping) == {"llamacpp", "vllm", "external"}
        for reference in mapping.values():
            part = parts[reference.rpartition("/")[2]]
            assert "engine_type" in part["required"]
            Draft202012Validator.check_schema(part)
    assert "tp_size" in parts["ModelCreateVllm"]["properties"]
    assert "hf_token" in parts["ModelCreateVllm"]["properties"]
    assert "hf_token" not in parts["ModelVllm"]["properties"]
    assert "required" not in parts["ModelPatchVllm"]


def test_answers_are_what_their_schemas_say(api: ApiUnderTest, document: dict[str, Any]) -> None:
    bodies: list[dict[str, Any]] = [
        {"name": "as-said", "engine_type": "llamacpp", "local_path": "x.gguf", "policy": {"concurrency": 2}},
        {"name": "as-said-v", "engine_type": "vllm", "repo_id": "org/model", "tp_size": 2},
        {"name": "as-said-e", "engine_type": "external", "endpoints": [{"url": "http://127.0.0.1:9"}]},
    ]
    with api.client() as client:
        for body in bodies:
            check(document, "ModelCreate", body)
            made = client.post("/models", json=body)
            assert made.status_code == 201, made.text
            check(document, "Model", made.json())
            check(document, "Model", client.post(f"/models/{body['name']}/start").json())
            check(document, "DryRun", client.post(f"/models/{body['name']}/dry-run").json())
        check(document, "ModelPage", client.get("/models").json())
        check(document, "Status", client.get("/status").json())
        check(document, "UsageOut", client.get("/usage").json())
        check(document, "Whoami", client.get("/whoami").json())
        check(document, "KeyCreated", client.post("/keys", json={"name": "said"}).json())
        check(document, "ErrorBody", client.get("/models/none").json())
        for engine in client.get("/engines").json()["items"]:
            Draft202012Validator.check_schema(engine["settings_schema"])


@pytest.mark.parametrize("path", ["/nope", "/api/v1/nope", "/api/v2/models"])
def test_unknown_paths_and_methods(api: ApiUnderTest, path: str) -> None:
    with api.client() as client:
        answer = client.get(f"{api.url}{path}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "http.not_found"
        answer = client.put("/models")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, POST"
        assert answer.json()["error"]["remedy"] == "use GET, POST"


def test_request_ids_are_kept_or_made(api: ApiUnderTest) -> None:
    with api.client() as client:
        assert client.get("/whoami", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        bad = client.get("/whoami", headers={"x-request-id": "a b"}).headers["x-request-id"]
        assert bad.startswith("req_")
