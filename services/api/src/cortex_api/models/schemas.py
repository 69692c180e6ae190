"""JSON Schemas of the flat model bodies, a oneOf over the engines, for OpenAPI.

Made of the same classes that validate; only when somebody asks for the OpenAPI document.
"""

from copy import deepcopy
from datetime import datetime
from functools import cache
from typing import Any, Literal

from cortex_shared.contracts.observed import Reason
from pydantic import BaseModel, Field, create_model
from pydantic.json_schema import models_json_schema

from cortex_api.engines import ENGINES
from cortex_api.instances.schemas import InstanceBrief
from cortex_api.models.fields import SharedFields
from cortex_api.models.state import ModelState

_REF = "#/components/schemas/{model}"


class ModelReadOnly(BaseModel):
    """What Cortex says of a model beside what it was told."""

    id: int
    state: ModelState
    state_reason: Reason | None = Field(description="Why, and what to do.")
    desired_state: Literal["stopped", "running"]
    generation: int = Field(description="Grows with every change that instances must follow.")
    port: int | None = Field(description="Port of its first instance on that instance's node.")
    container_name: str | None = Field(description="Name of its first instance's container.")
    ready_replicas: int
    hf_token_set: bool
    created_at: datetime
    updated_at: datetime
    instances: list[InstanceBrief]
    message: str | None = Field(default=None, description="What a start, stop or delete did.")
    warnings: list[str] | None = Field(default=None, description="What a create or patch found doubtful.")


def title(engine_type: str) -> str:
    """An engine's name in names of schemas."""
    return "".join(part.capitalize() for part in engine_type.replace("-", "_").split("_"))


@cache
def schemas() -> dict[str, Any]:
    """`components.schemas` of Model, ModelCreate and ModelPatch, with all that they refer to."""
    creates: dict[str, type[BaseModel]] = {}
    answers: dict[str, type[BaseModel]] = {}
    for kind, engine in ENGINES.items():
        # The discriminator comes first among the fields, and is required.
        tag: Any = (Literal[kind], Field(description="Which engine runs it."))
        creates[kind] = create_model(
            f"ModelCreate{title(kind)}", __base__=(SharedFields, engine.settings), engine_type=tag
        )
        answers[kind] = create_model(
            f"Model{title(kind)}", __base__=(ModelReadOnly, SharedFields, engine.answer), engine_type=tag
        )
    both = [
        *((kind, "validation") for kind in creates.values()),
        *((kind, "serialization") for kind in answers.values()),
    ]
    _, found = models_json_schema(both, ref_template=_REF)  # pyright: ignore[reportArgumentType] (a mode literal)
    parts: dict[str, Any] = found["$defs"]
    for kind in answers:
        answer = parts[f"Model{title(kind)}"]
        answer["properties"].pop("hf_token", None)
        answer["required"] = sorted({*answer.get("required", []), "engine_type"} - {"hf_token"})
        parts[f"ModelPatch{title(kind)}"] = _patch_of(parts[f"ModelCreate{title(kind)}"], kind)
    for name, meaning in (
        ("Model", "A model; `engine_type` says which engine's settings it has."),
        ("ModelCreate", "A new model: shared fields and the engine's settings at one level."),
    ):
        parts[name] = {
            "title": name,
            "description": meaning,
            "oneOf": [{"$ref": _REF.format(model=f"{name}{title(kind)}")} for kind in ENGINES],
            "discriminator": {
                "propertyName": "engine_type",
                "mapping": {kind: _REF.format(model=f"{name}{title(kind)}") for kind in ENGINES},
            },
        }
    parts["ModelPatch"] = {
        "title": "ModelPatch",
        "description": "Merged into the model (RFC 7396): null resets a field to its default.",
        "anyOf": [{"$ref": _REF.format(model=f"ModelPatch{title(kind)}")} for kind in ENGINES],
    }
    parts["ModelPage"] = {
        "title": "ModelPage",
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {
            "items": {"type": "array", "items": {"$ref": _REF.format(model="Model")}},
            "next_cursor": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
    }
    return parts


def _patch_of(create: dict[str, Any], engine_type: str) -> dict[str, Any]:
    patch = deepcopy(create)
    patch.pop("required", None)
    patch["title"] = f"ModelPatch{title(engine_type)}"
    patch["description"] = f"A change of a model of {engine_type}."
    for name, schema in patch["properties"].items():
        if name != "engine_type" and {"type": "null"} not in schema.get("anyOf", []):
            meaning = schema.pop("description", None)
            schema.pop("default", None)
            patch["properties"][name] = {"anyOf": [schema, {"type": "null"}], "description": meaning or name}
    return patch


def reference(name: str, description: str) -> dict[str, Any]:
    """An OpenAPI response whose JSON is one of these schemas."""
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": _REF.format(model=name)}}},
    }


def request_body(name: str, example: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI operation's request body that is one of these schemas."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": _REF.format(model=name)}, "example": example}
            },
        }
    }
