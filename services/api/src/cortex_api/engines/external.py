"""Engine external: servers with an OpenAI-compatible API that Cortex routes to but does not run."""

import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from cortex_shared.contracts.external import ServerState
from cortex_shared.contracts.observed import Exit, Reason
from cortex_shared.contracts.plan import Plan
from cortex_shared.contracts.routes import EngineKind, ExternalEndpoint
from cortex_shared.contracts.rpc import InspectReply
from cortex_shared.errors import InvalidInput
from cortex_shared.tls import client_context
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from cortex_api.engines.base import EngineSettings, Estimate, ModelSpec, Slot

_KEY_CHARACTERS_MAX = 4096


def _is_visible_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _base_url(value: str) -> str:
    # urlsplit drops line breaks and tabs, so what it gives says nothing of them.
    if not _is_visible_ascii(value):
        raise ValueError("an address has no blanks and none but ASCII characters; write names as xn--...")
    parts = urlsplit(value)
    try:
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        raise ValueError("write an address like https://host:8000")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address holds no password; give the key as api_key")
    if parts.query or parts.fragment:
        raise ValueError("an address has no ? and no #")
    # The gateway appends /v1/...; people copy addresses that already end so.
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def _key(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not (0 < len(text) <= _KEY_CHARACTERS_MAX and _is_visible_ascii(text)):
        raise ValueError(f"a key is 1 to {_KEY_CHARACTERS_MAX} visible ASCII characters, without blanks")
    return value


def _certificates(value: str) -> str:
    client_context(ca=value)
    return value


class ExternalServer(BaseModel):
    """One server."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: Annotated[str, AfterValidator(_base_url)] = Field(
        max_length=2048, description="Address without /v1, for instance https://host:8000."
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="The model's name there (default: the served name).",
    )
    api_key: Annotated[SecretStr, AfterValidator(_key)] | None = Field(
        default=None,
        exclude=True,
        description="Key to present there; kept encrypted, never shown again, and sent to this address only."
        " Left out: as it was for the same url; null: none.",
        json_schema_extra={"writeOnly": True},
    )
    weight: float = Field(default=1, gt=0, le=1000, description="Share of the requests, among the servers.")
    health_path: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^/[!-\"$-~]*$",
        description="Path below the address that answers 200 when the server is well (default: its list of"
        " models, /v1/models).",
    )
    tls_verify: bool = Field(
        default=True, description="false: take any certificate, so that anybody may pose as the server."
    )
    ca_certificate: Annotated[str, AfterValidator(_certificates)] | None = Field(
        default=None,
        max_length=64 * 1024,
        description="PEM text of the certificates to trust for this server, instead of the system's.",
    )

    @model_validator(mode="before")
    @classmethod
    def _passes_over_what_is_answered(cls, data: Any) -> Any:
        # A list is replaced as a whole: who changes a weight sends back what GET answered.
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if name not in _ANSWERED}  # pyright: ignore[reportUnknownVariableType] (JSON of any form)
        return data


class ExternalServerAnswer(ExternalServer):
    """One server, and how the monitor found it."""

    api_key_set: bool = Field(description="Whether a key is stored for it.")
    state: ServerState = Field(description="starting: not looked at yet; loading: it says so itself.")
    reason: Reason | None = Field(description="Why, and what to do; beside running: a warning.")
    latency_seconds: float | None = Field(description="How long its last answer to the monitor took.")
    checked_at: datetime | None = Field(description="When the monitor looked last.")


_ANSWERED = frozenset(ExternalServerAnswer.model_fields) - frozenset(ExternalServer.model_fields)


class ExternalSettings(EngineSettings):
    """Settings of a model that others serve."""

    model_config = ConfigDict(hide_input_in_errors=True)

    engine_type: Literal["external"] = Field(default="external", description="Which engine this is.")
    engine: EngineKind = Field(
        default="openai",
        description="What the servers run, so that parameters are spelled as they expect them; openai: any"
        " other.",
    )
    endpoints: list[ExternalServer] = Field(
        min_length=1, max_length=64, description="Servers that answer for the model."
    )
    context_length: int | None = Field(default=None, ge=1, description="Tokens that one request may hold.")


class ExternalAnswer(ExternalSettings):
    """The settings as they are answered."""

    endpoints: list[ExternalServerAnswer] = Field(  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
        description="Servers that answer for the model."
    )


class External:
    """Servers that others run; see the protocol Engine."""

    engine_type = "external"
    program: str | None = None
    settings: type[EngineSettings] = ExternalSettings
    answer: type[EngineSettings] = ExternalAnswer

    def check(self, spec: ModelSpec) -> None:
        """Raise InvalidInput when two endpoints are the same."""
        urls = [endpoint.url for endpoint in ExternalSettings.of(spec).endpoints]
        if len(set(urls)) < len(urls):
            raise InvalidInput(
                "an address is listed twice", code="settings.invalid", field="endpoints",
                remedy="list each address once; use weight to send it more",
            )  # fmt: skip

    def kind(self, spec: ModelSpec) -> EngineKind:
        """As its administrator says."""
        return ExternalSettings.of(spec).engine

    def gpu_counts(self, spec: ModelSpec, node_gpus: int) -> tuple[int, ...]:
        """Nothing is placed."""
        return ()

    def estimate(self, spec: ModelSpec, file: InspectReply | None, gpus: int) -> Estimate:
        """Nothing is run."""
        return Estimate(host_mib=0, explanation=("runs elsewhere",))

    def plan(self, spec: ModelSpec, slot: Slot) -> Plan:
        """There is none: raises InvalidInput."""
        raise InvalidInput(
            "a model of engine_type external is not run by Cortex", code="settings.external",
            field="engine_type", remedy="use vllm or llamacpp for models that Cortex is to run",
        )  # fmt: skip

    def diagnose(self, exit_: Exit) -> Reason | None:
        """Nothing of ours ends."""
        return None

    def context_length(self, spec: ModelSpec) -> int | None:
        """Tokens of one request."""
        return ExternalSettings.of(spec).context_length

    def file(self, spec: ModelSpec) -> str | None:
        """None: the files are elsewhere."""
        return None

    def external(self, spec: ModelSpec) -> list[ExternalEndpoint]:
        """The servers, without their keys."""
        return [
            ExternalEndpoint(
                id=endpoint_id(spec.id, server.url),
                url=server.url,
                weight=server.weight,
                model=server.model,
                tls_verify=server.tls_verify,
                ca=server.ca_certificate,
                health_path=server.health_path,
            )
            for server in ExternalSettings.of(spec).endpoints
        ]


def endpoint_id(model_id: int, url: str) -> str:
    """Id of an endpoint: of the address, so that no other one inherits what is known of it."""
    return f"external-{model_id}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
