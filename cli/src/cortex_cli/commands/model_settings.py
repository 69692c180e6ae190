"""Settings given as words (`--set key=value`, `--endpoint URL`) or a file, made into what the API takes."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from cortex_shared.errors import InvalidInput

from cortex_cli.client import Api
from cortex_cli.shapes import Json

# Fields of an endpoint whose text is in a file.
_FILES = {"api_key_file": "api_key", "ca_file": "ca_certificate"}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def read_body(words: Sequence[str] | None, file: Path | None, schema: Json) -> Json:
    """The file's object, overridden by `key=value` words; `policy.balance=prefix` sets a field of an object.

    Raises InvalidInput.
    """
    body = _read_file(file) if file is not None else {}
    for word in words or ():
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise InvalidInput(
                f"--set {word!r} is not KEY=VALUE.", code="cli.set", field="--set", remedy="Write key=value."
            )
        _put(body, key, typed(key, text, field_schema(schema, key)))
    return body


def _put(body: Json, key: str, value: object) -> None:
    *path, last = key.split(".")
    for part in path:
        below = body.setdefault(part, {})
        if not isinstance(below, dict):
            raise InvalidInput(
                f"--set {key}: {part} is no object.",
                code="cli.set",
                field=key,
                remedy=f"Set {part} as a whole, as JSON.",
            )
        body = cast("Json", below)
    body[last] = value


def new_model_body(
    api: Api,
    words: Sequence[str] | None,
    file: Path | None,
    engine: str | None,
    servers: Sequence[str] | None = None,
) -> Json:
    """The body of a new model; its engine is what is said, or what servers or a GGUF file's name tell.

    Raises InvalidInput, and what asking the API for its schema raises.
    """
    engine = engine or ("external" if servers else None)
    schema = schema_of(api, engine)
    body = read_body(words, file, schema)
    if servers:
        body["endpoints"] = endpoints_of(servers, schema)
    if engine is not None:
        body["engine_type"] = engine
    elif any(str(body.get(name, "")).endswith(".gguf") for name in ("local_path", "filename")):
        body.setdefault("engine_type", "llamacpp")
    return body


def endpoints_of(words: Sequence[str], schema: Json) -> list[Json]:
    """One server per word, in their order; `schema` is that of the model. Raises InvalidInput.

    `api_key_file` and `ca_file` name files (`-`: standard input) whose text is sent as `api_key` and
    `ca_certificate`: what is typed is seen by others, in the list of processes and in the shell's history.
    """
    return [_endpoint(word, schema) for word in words]


def _endpoint(word: str, schema: Json) -> Json:
    url, *settings = word.split(",")
    found: Json = {"url": url}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise InvalidInput(
                f"--endpoint {_shown(word)}: {_shown(setting)} is not KEY=VALUE.",
                code="cli.endpoint",
                field="--endpoint",
                remedy="Write URL,weight=2,model=NAME,api_key_file=PATH.",
            )
        if key in _FILES:
            found[_FILES[key]] = _text_of(text)
        else:
            found[key] = typed(key, text, field_schema(schema, f"endpoints.{key}"))
    return found


def _text_of(path: str) -> str:
    try:
        return (sys.stdin.read() if path == "-" else Path(path).read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{path} cannot be read: {error}", code="cli.file", field="--endpoint", remedy="Check the path."
        ) from error


def _shown(text: str) -> str:
    """Without a key that may be in it."""
    before, found, _ = text.partition("api_key=")
    return f"{before}{found}..." if found else text


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


def field_schema(schema: Json, key: str) -> Json:
    """A field's own schema, with the whole one's `$defs` beside it; `a.b` is a field of an object or of each
    of a list's. Empty when the schema does not say.
    """
    parts = cast("Json", schema.get("$defs") or {})
    found = schema
    for name in key.split("."):
        found = _below(found, name, parts)
    return {**found, "$defs": parts} if found else {}


def _below(schema: Json, name: str, parts: Json) -> Json:
    for part in _alternatives(schema, parts):
        below = cast("Json", part.get("properties") or {}).get(name)
        below = below or part.get("additionalProperties")
        if isinstance(below, dict):
            return cast("Json", below)
        if isinstance(part.get("items"), dict):
            return _below(cast("Json", part["items"]), name, parts)
    return {}


def _alternatives(schema: Json, parts: Json) -> list[Json]:
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _alternatives(cast("Json", parts.get(reference.rpartition("/")[2]) or {}), parts)
    among = cast("list[Json]", schema.get("anyOf") or schema.get("oneOf") or [])
    return [found for part in among for found in _alternatives(part, parts)] or [schema]


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
