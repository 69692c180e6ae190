"""All messages there are, and the JSON Schema of each as it is now."""

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any, cast

import cortex_shared.contracts
from cortex_shared.contracts.base import Message

SCHEMAS = Path(__file__).parent / "schemas"


def messages() -> dict[str, type[Message]]:
    """Type name (`cortex.start.v1`) → class, of every module of contracts."""
    for module in pkgutil.iter_modules(cortex_shared.contracts.__path__):
        importlib.import_module(f"{cortex_shared.contracts.__name__}.{module.name}")
    found: dict[str, type[Message]] = {}
    for kind in Message.__subclasses__():
        if not kind.__module__.startswith(f"{cortex_shared.contracts.__name__}."):
            continue
        name = kind.model_fields["type"].default
        if name in found:
            raise ValueError(f"{kind.__name__} and {found[name].__name__} are both {name}")
        found[name] = kind
    return dict(sorted(found.items()))


def reader_schema_of(kind: type[Message]) -> dict[str, Any]:
    """What a reader of this version accepts, without the prose."""
    return without_prose(kind.model_json_schema(mode="validation"))


def without_prose(schema: Any) -> Any:
    """Drop titles and descriptions: changing words is not changing a message."""
    if isinstance(schema, list):
        return [without_prose(part) for part in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in cast("dict[str, Any]", schema).items():
        if key in ("properties", "$defs"):
            # Here the keys are names of fields, and a field may be called `title`.
            kept[key] = {name: without_prose(part) for name, part in value.items()}
        elif key not in ("title", "description"):
            kept[key] = without_prose(value)
    return kept


def text_of(schema: dict[str, Any]) -> str:
    """As a file holds it."""
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
