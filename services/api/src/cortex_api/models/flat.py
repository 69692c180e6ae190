"""The flat body of a model: shared fields and the engine's settings at one level, split and joined here."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from cortex_shared.contracts.routes import RoutePolicy
from cortex_shared.errors import InvalidInput
from pydantic import ValidationError
from pydantic_core import to_json

from cortex_api.engines import ENGINES, parse_settings
from cortex_api.engines.base import EngineSettings, ModelSpec, PlacementWish
from cortex_api.models.fields import SharedFields
from cortex_api.models.policy import check_policy
from cortex_api.rest.errors import invalid, nearest, unknown_field

_SETTINGS_BYTES_MAX = 256 * 1024

type Document = dict[str, Any]

# Answered, never taken: a client may send a model back as it got it.
READ_ONLY = frozenset(
    {
        "id", "state", "state_reason", "generation", "port", "container_name", "ready_replicas", "created_at",
        "updated_at", "instances", "hf_token_set", "warnings", "message", "desired_state",
    }
)  # fmt: skip


@dataclass(frozen=True)
class ModelBody:
    """A valid body: the shared fields, the engine's settings, and the settings as they were given."""

    shared: SharedFields
    settings: EngineSettings
    given: Document

    def spec(self, *, model_id: int, generation: int = 1, has_hf_token: bool = False) -> ModelSpec:
        """The model as engines and placement see it."""
        shared = self.shared
        return ModelSpec(
            id=model_id,
            name=shared.name,
            served_model_name=shared.served_model_name or shared.name,
            task=shared.task,
            engine_type=shared.engine_type,
            settings=self.settings,
            aliases=tuple(shared.aliases),
            engine_version=shared.engine_version,
            engine_image=shared.engine_image,
            mode=shared.mode,
            generation=generation,
            replicas=shared.replicas,
            placement=PlacementWish(**shared.placement.model_dump()),
            policy=RoutePolicy.model_validate(shared.policy.model_dump()),
            has_hf_token=has_hf_token or shared.hf_token is not None,
        )


def parse_body(document: Document) -> ModelBody:
    """Check a whole flat document. Raises InvalidInput naming the field."""
    engine_type = document.get("engine_type")
    if not isinstance(engine_type, str) or engine_type not in ENGINES:
        kinds = ", ".join(ENGINES)
        if engine_type is None:
            raise InvalidInput(
                "engine_type is missing",
                code="body.missing",
                field="engine_type",
                remedy=f"use one of {kinds}",
            )
        close = nearest(str(engine_type), list(ENGINES))
        raise InvalidInput(
            f"there is no engine {engine_type!r}" + (f"; did you mean {close!r}?" if close else ""),
            code="models.unknown_engine",
            field="engine_type",
            remedy=f"use one of {kinds}",
        )
    shared, settings = _split(document, engine_type)
    try:
        fields = SharedFields.model_validate(shared)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False)) from error
    check_policy(fields.policy, fields.served_names())
    body = ModelBody(fields, parse_settings(engine_type, settings), settings)
    for field, path in _paths(settings):
        _check_path(field, path)
    _check_size(settings)
    ENGINES[engine_type].check(body.spec(model_id=0))
    return body


def _check_size(settings: Document) -> None:
    """A plan travels in one message; one that is too large for NATS would hold up all others of its node."""
    sizes = {name: len(to_json(value)) for name, value in settings.items()}
    if sum(sizes.values()) > _SETTINGS_BYTES_MAX:
        largest = max(sizes, key=lambda name: sizes[name])
        raise InvalidInput(
            f"the settings have {sum(sizes.values())} bytes, most of them {largest}; at most"
            f" {_SETTINGS_BYTES_MAX} travel",
            code="models.too_large",
            field=largest,
            remedy=f"shorten {largest}, or put it into a file on the node",
        )


def _split(document: Document, engine_type: str) -> tuple[Document, Document]:
    shared_names = SharedFields.model_fields
    settings_names = ENGINES[engine_type].settings.model_fields
    known = [*shared_names, *settings_names]
    shared: Document = {}
    settings: Document = {}
    for name, value in document.items():
        if name in shared_names:
            shared[name] = value
        elif name in settings_names:
            settings[name] = value
        elif name in READ_ONLY:
            raise InvalidInput(
                f"{name} is read-only",
                code="body.read_only",
                field=name,
                remedy="leave it out; start and stop change the state",
            )
        else:
            raise _foreign(name, engine_type, known)
    return shared, settings


def _foreign(name: str, engine_type: str, known: list[str]) -> InvalidInput:
    for other, engine in ENGINES.items():
        if other != engine_type and name in engine.settings.model_fields:
            close = nearest(name, known)
            return InvalidInput(
                f"{name} is a setting of {other}, not of {engine_type}",
                code="body.unknown_field",
                field=name,
                remedy=f"use {close!r}" if close else f"leave it out, or create a model of engine {other}",
            )
    return unknown_field(name, known)


def _paths(settings: Document) -> Iterator[tuple[str, object]]:
    """Every setting that names a file on the node, with its field; the settings are valid."""
    for field in ("local_path", "mmproj", "draft_model_path"):
        yield field, settings.get(field)
    for number, adapter in enumerate(settings.get("lora") or []):
        yield f"lora.{number}.path", adapter["path"]


def _check_path(field: str, path: object) -> None:
    if isinstance(path, str) and not path.startswith("/") and ".." in PurePosixPath(path).parts:
        raise InvalidInput(
            f"{field} {path!r} leaves the model folder",
            code="models.path_escapes",
            field=field,
            remedy="give a path below the node's model folder, without ..",
        )


def merge(document: Document, patch: Document) -> Document:
    """RFC 7396: null removes, objects merge, everything else replaces. Neither argument is changed."""
    merged = deepcopy(document)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            below = merged.get(name)
            merged[name] = merge(
                cast("Document", below) if isinstance(below, dict) else {}, cast("Document", value)
            )
        else:
            merged[name] = deepcopy(cast("object", value))
    return merged
