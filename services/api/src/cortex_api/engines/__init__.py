"""The engines. A new one is a folder here, and one line in each of the two lists below."""

from collections.abc import Mapping
from typing import Annotated, Any

from cortex_shared.contracts.observed import Exit, Reason
from cortex_shared.errors import InvalidInput
from pydantic import Field, ValidationError

from cortex_api.engines.base import (
    Engine,
    EngineSettings,
    Estimate,
    Mode,
    ModelSpec,
    PlacementWish,
    Slot,
)
from cortex_api.engines.external import External, ExternalSettings
from cortex_api.engines.llamacpp import LlamaCpp, LlamaCppSettings
from cortex_api.engines.vllm import Vllm, VllmSettings

__all__ = [
    "ENGINES",
    "AnySettings",
    "Engine",
    "EngineSettings",
    "Estimate",
    "Mode",
    "ModelSpec",
    "PlacementWish",
    "Slot",
    "check",
    "engine_of",
    "explain_exit",
    "parse_settings",
]

type AnySettings = Annotated[
    LlamaCppSettings | VllmSettings | ExternalSettings,
    Field(discriminator="engine_type"),
]

ENGINES: Mapping[str, Engine] = {
    engine.engine_type: engine
    for engine in (
        LlamaCpp(),
        Vllm(),
        External(),
    )
}


def engine_of(engine_type: str) -> Engine:
    """The engine of that type; raises InvalidInput when there is none."""
    engine = ENGINES.get(engine_type)
    if engine is None:
        raise InvalidInput(
            f"there is no engine {engine_type!r}",
            code="settings.engine",
            field="engine_type",
            remedy=f"use one of {', '.join(ENGINES)}",
        )
    return engine


def parse_settings(engine_type: str, document: Mapping[str, Any]) -> EngineSettings:
    """Settings from a document (a request's, or the database's); raises InvalidInput naming the field."""
    engine = engine_of(engine_type)
    try:
        return engine.settings.model_validate({"engine_type": engine_type, **document})
    except ValidationError as error:
        raise _invalid(error, engine) from error


def check(spec: ModelSpec) -> None:
    """Raise InvalidInput when a model's settings do not fit each other, its task or its mode."""
    engine_of(spec.engine_type).check(spec)


def explain_exit(engine_type: str, exit_: Exit) -> Reason | None:
    """What an engine's end means, None when neither its log nor its status says."""
    engine = ENGINES.get(engine_type)
    return None if engine is None else engine.diagnose(exit_)


def _invalid(error: ValidationError, engine: Engine) -> InvalidInput:
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        others = [name for name, other in ENGINES.items() if field in other.settings.model_fields]
        hint = f"it is a setting of {' and '.join(others)}" if others else "check its spelling"
        return InvalidInput(
            f"{engine.engine_type} has no setting {field}", code="settings.unknown", field=field, remedy=hint
        )
    known = engine.settings.model_fields.get(str(first["loc"][0])) if first["loc"] else None
    return InvalidInput(
        f"{field}: {first['msg']}" if field else first["msg"],
        code="settings.invalid",
        field=field or None,
        remedy=known.description if known is not None else None,
    )
