"""Engine vLLM."""

from cortex_shared.contracts.observed import Exit, Reason
from cortex_shared.contracts.plan import Plan
from cortex_shared.contracts.routes import EngineKind, ExternalEndpoint
from cortex_shared.contracts.rpc import InspectReply

from cortex_api.engines.base import EngineSettings, Estimate, ModelSpec, Slot
from cortex_api.engines.diagnosis import diagnose
from cortex_api.engines.vllm import memory
from cortex_api.engines.vllm import plan as plans
from cortex_api.engines.vllm.causes import CAUSES, NOISE, UNKNOWN
from cortex_api.engines.vllm.settings import VllmSettings

__all__ = ["Vllm", "VllmSettings"]


class Vllm:
    """vLLM; see the protocol Engine."""

    engine_type = "vllm"
    program: str | None = plans.PROGRAM
    settings: type[EngineSettings] = VllmSettings
    answer: type[EngineSettings] = VllmSettings

    def check(self, spec: ModelSpec) -> None:
        """Raise InvalidInput when the settings do not fit."""
        plans.check(spec)

    def kind(self, spec: ModelSpec) -> EngineKind:
        """Always the same."""
        return "vllm"

    def gpu_counts(self, spec: ModelSpec, node_gpus: int) -> tuple[int, ...]:
        """tp_size x pipeline_parallel_size; on a node without GPUs none: its vLLM is one for CPUs.

        vLLM is built for GPUs or for CPUs, and which one a host's program is shows in what the host has.
        """
        settings = VllmSettings.of(spec)
        count = settings.tp_size * settings.pipeline_parallel_size
        if node_gpus == 0:
            return (0,)
        return (count,) if count <= node_gpus else ()

    def estimate(self, spec: ModelSpec, file: InspectReply | None, gpus: int) -> Estimate:
        """Memory of one replica."""
        return memory.estimate(spec, file, gpus)

    def plan(self, spec: ModelSpec, slot: Slot) -> Plan:
        """What the agent is to run."""
        return plans.plan(spec, slot)

    def diagnose(self, exit_: Exit) -> Reason | None:
        """Why it ended."""
        return diagnose(exit_, CAUSES, noise=NOISE, unknown=UNKNOWN)

    def context_length(self, spec: ModelSpec) -> int | None:
        """Tokens of one request."""
        return VllmSettings.of(spec).max_model_len

    def file(self, spec: ModelSpec) -> str | None:
        """The model's folder, if it is on the node."""
        return VllmSettings.of(spec).local_path

    def external(self, spec: ModelSpec) -> list[ExternalEndpoint]:
        """None: Cortex runs it."""
        return []
