"""Engine external: servers with an OpenAI-compatible API that Cortex routes to but does not run."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from cortex_shared.contracts.observed import Exit, Reason
from cortex_shared.contracts.plan import Plan
from cortex_shared.contracts.routes import EngineKind, ExternalEndpoint
from cortex_shared.contracts.rpc import InspectReply
from cortex_shared.errors import InvalidInput
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cortex_api.engines.base import EngineSettings, Estimate, ModelSpec, Slot


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    try:
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        raise ValueError("write an address like https://host:8000")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address holds no password; name the key with key_name")
    if parts.query or parts.fragment:
        raise ValueError("an address has no ? and no #")
    # The gateway appends /v1/...; people copy addresses that already end so.
    return value.rstrip("/").removesuffix("/v1").rstrip("/")


class ExternalServer(BaseModel):
    """One server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, AfterValidator(_base_url)] = Field(
        max_length=2048, description="Address without /v1, for instance https://host:8000."
    )
    model: str | None = Field(
        default=None, min_length=1, description="The model's name there (default: the served name)."
    )
    key_name: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$", description="Name of the key to present."
    )
    weight: float = Field(default=1, gt=0, le=1000, description="Share of the requests, among the servers.")


class ExternalSettings(EngineSettings):
    """Settings of a model that others serve."""

    engine_type: Literal["external"] = Field(default="external", description="Which engine this is.")
    endpoints: list[ExternalServer] = Field(
        min_length=1, max_length=64, description="Servers that answer for the model."
    )
    context_length: int | None = Field(default=None, ge=1, description="Tokens that one request may hold.")


class External:
    """Servers that others run; see the protocol Engine."""

    engine_type = "external"
    kind: EngineKind = "openai"
    program: str | None = None
    settings: type[EngineSettings] = ExternalSettings

    def check(self, spec: ModelSpec) -> None:
        """Raise InvalidInput when two endpoints are the same."""
        urls = [endpoint.url for endpoint in ExternalSettings.of(spec).endpoints]
        if len(set(urls)) < len(urls):
            raise InvalidInput(
                "an address is listed twice", code="settings.invalid", field="endpoints",
                remedy="list each address once; use weight to send it more",
            )  # fmt: skip

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
        """The servers, with ids that stay the same as long as their order does."""
        return [
            ExternalEndpoint(
                id=f"external-{spec.id}-{number}",
                url=endpoint.url,
                weight=endpoint.weight,
                model=endpoint.model,
                key=endpoint.key_name,
            )
            for number, endpoint in enumerate(ExternalSettings.of(spec).endpoints)
        ]
