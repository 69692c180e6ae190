"""Settings given as words (`--set key=value`) or a file, made into a body with the API's own types."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from cortex_shared.errors import InvalidInput

from cortex_cli.client import Api
from cortex_cli.shapes import Json

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def read_body(words: Sequence[str] | None, file: Path | None, schema: Json) -> Json:
    """The file's object, overridden by `key=value` words. Raises InvalidInput."""
    body = _read_file(file) if file is not None else {}
    for word in words or ():
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise InvalidInput(
                f"--set {word!r} is not KEY=VALUE.", code="cli.set", field="--set", remedy="Write key=value."
            )
        body[key] = typed(key, text, _property(schema, key))
    return body


def new_model_body(api: Api, words: Sequence[str] | None, file: Path | None, engine: str | None) -> Json:
    """The body of a new model; its engine is what is said, or what the name of a GGUF file tells.

    Raises InvalidInput, and what asking the API for its schema raises.
    """
    body = read_body(words, file, schema_of(api, engine))
    if engine is not None:
        body["engine_type"] = engine
    elif any(str(body.get(name, "")).endswith(".gguf") for name in ("local_path", "filename")):
        body.setdefault("engine_type", "llamacpp")
    return body


def schema_of(api: Api, engine_type: str | None) -> Json:
    """The JSON Schema of a new model of an engine, with the API's `$defs`; empty for an unknown engine."""
    components = cast("Json", api.get("/openapi.json").get("components") or {})
    parts = cast("Json", components.get("schemas") or {})
    mapping = cast("Json", cast("Json", parts.get("ModelCreate") or {}).get("discriminator") or {})
    reference = cast("Json", mapping.get("mapping") or {}).get(engine_type or "llamacpp", "")
    found = parts.get(str(reference).rpartition("/")[2])
    return {**cast("Json", found), "$defs": parts} if isinstance(found, dict) else {}


def typed(key: str, text: str, schema: Json) -> Any:
    """`text` as the schema wants it: a number, a truth, JSON for lists and objects, else the text itself.

    Raises InvalidInput when it is not of the type; what it means is the API's to judge.
    """
    kinds = _kinds(schema)
    if text in ("null", "") and "null" in kinds:
        return None
    if "string" in kinds:
        return text
    lowered = text.lower()
    if "boolean" in kinds and lowered in (*_TRUE, *_FALSE):
        return lowered in _TRUE
    if "array" in kinds and not text.startswith("["):
        return [_guess(part.strip()) for part in text.split(",")]
    found = _guess(text)
    if not kinds or _fits(found, kinds):
        return found
    wanted = " or ".join(sorted(kinds - {"null"}))
    raise InvalidInput(
        f"{key}={text} is no {wanted}.", code="cli.set_type", field=key, remedy=f"Give a {wanted}."
    )


def _fits(value: object, kinds: set[str]) -> bool:
    names: dict[type, tuple[str, ...]] = {
        bool: ("boolean",),
        int: ("integer", "number"),
        float: ("number",),
        str: ("string",),
        list: ("array",),
        dict: ("object",),
        type(None): ("null",),
    }
    return any(name in kinds for name in names.get(type(value), ()))


def _guess(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _property(schema: Json, key: str) -> Json:
    """A property's own schema, with the whole one's `$defs` beside it, to which it may refer."""
    found = cast("Json", schema.get("properties") or {}).get(key)
    return {**cast("Json", found), "$defs": schema.get("$defs") or {}} if isinstance(found, dict) else {}


def _kinds(schema: Json) -> set[str]:
    """JSON types that a schema allows; empty when it does not say."""
    parts = cast("Json", schema.get("$defs") or {})
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _kinds({**cast("Json", parts.get(reference.rpartition("/")[2]) or {}), "$defs": parts})
    found = schema.get("type")
    kinds = {found} if isinstance(found, str) else set(cast("list[str]", found or []))
    for part in cast("list[Json]", schema.get("anyOf") or schema.get("oneOf") or []):
        kinds |= _kinds({**part, "$defs": parts})
    values: list[object] = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if values and all(isinstance(value, str) for value in values):
        kinds.add("string")
    return kinds


def _read_file(path: Path) -> Json:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
        found: object = json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{path} cannot be read: {error}", code="cli.file", field="--file", remedy="Check the path."
        ) from error
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f"{path} is not JSON: {error}", code="cli.file", field="--file", remedy="Write a JSON object."
        ) from error
    if not isinstance(found, dict):
        raise InvalidInput(
            f"{path} holds no JSON object.", code="cli.file", field="--file", remedy='Write {"name": ...}.'
        )
    return cast("Json", found)
