"""Messages may grow and never change: each is held against the schema kept of it."""

import json
from copy import deepcopy
from typing import Any

import pytest
from cortex_shared.contracts.base import Message
from cortex_shared.contracts.commands import Manifest, Start, Stop, decode_command
from cortex_shared.contracts.events import Event
from cortex_shared.contracts.plan import Plan
from cortex_shared.contracts.routes import RouteWanted, RoutingTable
from cortex_shared.errors import InvalidInput

from tests.contract.additive import breaks
from tests.contract.messages import SCHEMAS, messages, reader_schema_of, text_of

REMEDY = "run `python -m tests.contract.write_schemas` and commit what it writes"


@pytest.mark.parametrize("name", messages())
def test_a_message_only_grows(name: str) -> None:
    path = SCHEMAS / f"{name}.json"
    assert path.exists(), f"{name} is new: {REMEDY}"
    kept, now = json.loads(path.read_text()), reader_schema_of(messages()[name])
    assert breaks(kept, now) == [], f"make a new class with a new type beside {name}"
    assert path.read_text() == text_of(now), f"{name} has grown: {REMEDY}"


def test_no_message_is_dropped() -> None:
    kept = {path.name.removesuffix(".json") for path in SCHEMAS.glob("*.json")}
    assert kept - set(messages()) == set(), "a message that others may still send is gone"


@pytest.mark.parametrize(("name", "kind"), messages().items())
def test_a_message_is_named_and_versioned(name: str, kind: type[Message]) -> None:
    assert name.startswith("cortex.")
    assert name.rpartition(".v")[2].isdigit()
    assert kind.model_config.get("extra") == "ignore", "a reader ignores fields that it does not know"
    assert kind.model_config.get("frozen")


EXAMPLE: dict[str, Any] = {
    "type": "object",
    "required": ["a"],
    "$defs": {"Part": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}},
    "properties": {
        "a": {"type": "string"},
        "b": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        "c": {"enum": ["x", "y"], "type": "string", "default": "x"},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}, "default": []},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """EXAMPLE with one place set; None removes it."""
    schema = deepcopy(EXAMPLE)
    *way, last = path.split("/")
    place: Any = schema
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return schema


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("properties/d", {"type": "string", "default": ""}),
        ("properties/c/default", "y"),
        ("$defs/Part/properties/m", {"type": "number"}),
        ("$defs/Part/properties/n/minimum", 0),
    ],
)
def test_what_is_additive(path: str, value: Any) -> None:
    assert breaks(EXAMPLE, changed(path, value)) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("properties/c", None, "c is gone"),
        ("properties/a", {"type": "integer"}, "a was string and is integer"),
        ("properties/b", {"type": "integer"}, "no longer takes null"),
        ("properties/a", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "may be null"),
        ("required", ["a", "c"], "c is newly required"),
        ("required", [], "a is no longer required"),
        ("properties/c/enum", ["x"], "no longer takes 'y'"),
        ("properties/c/enum", ["x", "y", "z"], "may be 'z'"),
        ("$defs/Part/properties/n/minimum", 2, "narrower"),
        ("$defs/Part/properties/n", None, "parts[].n is gone"),
        ("properties/parts/items", {"type": "string"}, "parts[] was object and is string"),
    ],
)
def test_what_is_not_additive(path: str, value: Any, told: str) -> None:
    assert any(told in sentence for sentence in breaks(EXAMPLE, changed(path, value)))


def start() -> Start:
    return Start(
        fleet="f",
        node="n",
        instance="i",
        generation=1,
        model_id=1,
        model="m",
        served_model_name="s",
        plan=Plan(program="llama-server", argv=["--port", "{port}"], container_name="c"),
        plan_hash="h",
    )


@pytest.mark.parametrize(
    "message",
    [
        start(),
        Stop(fleet="f", node="n", instance="i", generation=2),
        Manifest(fleet="f", node="n", epoch=1, instances=[]),
    ],
)
def test_commands_are_told_apart_and_unknown_fields_ignored(message: Start | Stop | Manifest) -> None:
    data = json.loads(message.encode())
    assert decode_command(json.dumps({**data, "of_a_later_version": {"x": [1]}}).encode()) == message


@pytest.mark.parametrize("data", [b"", b"{}", b"nothing", b'{"type": "cortex.start.v9"}', b"\xff"])
def test_what_is_no_command_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_command(data)
    assert caught.value.remedy


def test_a_refusal_names_the_field_and_never_shows_the_value() -> None:
    data = json.dumps({**json.loads(start().encode()), "generation": "sk-cortex-secret"})
    with pytest.raises(InvalidInput) as caught:
        Start.decode(data)
    assert caught.value.field == "generation"
    assert "sk-cortex-secret" not in str(caught.value.body())


def test_numbers_that_json_has_not_become_null() -> None:
    event = Event.model_validate(
        {"id": "e", "at": "2026-01-01T00:00:00Z", "kind": "k", "message": "", "data": {"x": float("inf")}}
    )
    assert json.loads(event.encode())["data"] == {"x": None}


@pytest.mark.parametrize("field", ["engine", "task"])
def test_a_kind_that_is_new_to_a_reader_costs_it_no_route(field: str) -> None:
    known: dict[str, Any] = {
        "model_id": 1,
        "model": "m",
        "served_model_name": "m",
        "name": "m",
        "task": "chat",
        "engine": "vllm",
        "created": 1,
        field: "of a later version",
    }
    table = {"term": 1, "version": 1, "written_at": "2030-01-01T00:00:00Z", "routes": [known]}
    read = RoutingTable.decode(json.dumps({"type": "cortex.routing_table.v1", **table}).encode())
    assert getattr(read.routes[0], field) == "of a later version"
    wanted = RouteWanted.decode(json.dumps({"type": "cortex.route_wanted.v1", **known}).encode())
    assert getattr(wanted, field) == "of a later version"
