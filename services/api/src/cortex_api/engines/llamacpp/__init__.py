"""Engine llama.cpp: one plan, llama-server's argv, in all its forms."""

from cortex_shared.contracts.observed import Exit, Reason
from cortex_shared.contracts.plan import Plan
from cortex_shared.contracts.routes import EngineKind, ExternalEndpoint
from cortex_shared.contracts.rpc import InspectReply

from cortex_api.engines.base import EngineSettings, Estimate, ModelSpec, Slot
from cortex_api.engines.diagnosis import diagnose
from cortex_api.engines.llamacpp import memory
from cortex_api.engines.llamacpp import plan as plans
from cortex_api.engines.llamacpp.causes import CAUSES
from cortex_api.engines.llamacpp.settings import LlamaCppSettings

__all__ = ["LlamaCpp", "LlamaCppSettings"]

_GPUS_MAX = 16


class LlamaCpp:
    """llama.cpp; see the protocol Engine."""

    engine_type = "llamacpp"
    program: str | None = plans.PROGRAM
    settings: type[EngineSettings] = LlamaCppSettings
    answer: type[EngineSettings] = LlamaCppSettings

    def check(self, spec: ModelSpec) -> None:
        """Raise InvalidInput when the settings do not fit."""
        plans.check(spec)

    def kind(self, spec: ModelSpec) -> EngineKind:
        """Always the same."""
        return "llamacpp"

    def gpu_counts(self, spec: ModelSpec, node_gpus: int) -> tuple[int, ...]:
        """As many as tensor_split has shares, else the least that do; none for ngl 0, or auto without any."""
        settings = LlamaCppSettings.of(spec)
        if settings.ngl == 0:
            return (0,)
        fallback = (0,) if settings.ngl == "auto" and settings.tensor_split is None else ()
        if settings.tensor_split is not None:
            counts: tuple[int, ...] = (len(settings.tensor_split),)
        elif settings.split_mode == "none":
            counts = (1,)
        else:
            counts = tuple(range(1, _GPUS_MAX + 1))
        return tuple(count for count in counts if count <= node_gpus) + fallback

    def estimate(self, spec: ModelSpec, file: InspectReply | None, gpus: int) -> Estimate:
        """Memory of one replica."""
        return memory.estimate(spec, file, gpus)

    def plan(self, spec: ModelSpec, slot: Slot) -> Plan:
        """What the agent is to run."""
        return plans.plan(spec, slot)

    def diagnose(self, exit_: Exit) -> Reason | None:
        """Why it ended."""
        return diagnose(exit_, CAUSES)

    def context_length(self, spec: ModelSpec) -> int | None:
        """Tokens of one request."""
        return LlamaCppSettings.of(spec).context_size or None

    def file(self, spec: ModelSpec) -> str | None:
        """The GGUF file, if it is on the node."""
        return LlamaCppSettings.of(spec).local_path

    def external(self, spec: ModelSpec) -> list[ExternalEndpoint]:
        """None: Cortex runs it."""
        return []
