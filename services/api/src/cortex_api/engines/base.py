"""What an engine is: its settings, how much it needs, its plan, and what its failures mean. All pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from cortex_shared.contracts.observed import Exit, Reason
from cortex_shared.contracts.plan import Plan
from cortex_shared.contracts.routes import EngineKind, ExternalEndpoint, RoutePolicy, Task
from cortex_shared.contracts.rpc import InspectReply
from cortex_shared.errors import InvalidInput
from pydantic import BaseModel, ConfigDict, Field

type Mode = Literal["online", "offline"]
type Runtime = Literal["process", "docker"]

# Variables that the agent fills, or by which a plan would change what program runs or who may call it.
_ENV_REFUSED = frozenset(
    {
        "PATH",
        "PYTHONPATH",
        "PYTHONHOME",
        "HOME",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
    }
)


class EngineSettings(BaseModel):
    """Base of each engine's settings: the one place where they are spelled.

    The JSON Schema of a subclass drives the API's body, the database's column, forms and the command line.
    None means: as the engine has it by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, spec: "ModelSpec") -> Self:
        """The settings of a model as this engine's; a model of another engine is a bug."""
        if not isinstance(spec.settings, cls):
            raise TypeError(f"model {spec.id} has {type(spec.settings).__name__}, not {cls.__name__}")
        return spec.settings


class RunSettings(EngineSettings):
    """What every engine that Cortex itself runs can be given beside its own settings."""

    extra_args: list[str] = Field(
        default_factory=list,
        max_length=256,
        description="Further command line arguments, as the engine takes them; not for flags that a setting"
        " or Cortex itself sets.",
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        max_length=64,
        description="Environment variables of the engine's process. No secrets: they are shown to viewers.",
    )


class PlacementWish(BaseModel):
    """Where a model may run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: list[str] = Field(
        default_factory=list, max_length=1024, description="Only these nodes; empty: any."
    )
    labels: dict[str, str] = Field(
        default_factory=dict, max_length=64, description="Only nodes that have all these labels."
    )


@dataclass(frozen=True)
class ModelSpec:
    """A model as its administrator wants it, read from the database."""

    id: int
    name: str
    served_model_name: str
    task: Task
    engine_type: str
    settings: EngineSettings
    aliases: tuple[str, ...] = ()
    engine_version: str | None = None
    engine_image: str | None = None
    mode: Mode = "online"
    generation: int = 1
    replicas: int = 1
    placement: PlacementWish = field(default_factory=PlacementWish)
    policy: RoutePolicy = field(default_factory=RoutePolicy)
    has_hf_token: bool = False


@dataclass(frozen=True)
class Slot:
    """The place that a plan is compiled for.

    `ordinal` counts the model's replicas on one node from 0, `cpus` are the node's, `gpus` are UUIDs.
    """

    cpus: int = 1
    gpus: tuple[str, ...] = ()
    ordinal: int = 0
    runtime: Runtime = "process"


@dataclass(frozen=True)
class Estimate:
    """Memory that one replica needs: MiB on each of its GPUs and on the host, and why, line by line.

    `gpu_ratio` is the share of each GPU's whole memory that the engine takes, where it takes a share.
    """

    host_mib: int
    gpu_mib: int = 0
    gpu_ratio: float | None = None
    explanation: tuple[str, ...] = ()

    def gpu_need_mib(self, total_mib: int) -> int:
        """MiB that the engine takes on a GPU of `total_mib`."""
        return max(self.gpu_mib, int((self.gpu_ratio or 0) * total_mib))


class Engine(Protocol):
    """One engine. Everything here is a pure function of its arguments."""

    @property
    def engine_type(self) -> str:
        """As `engine_type` of a model says it."""
        ...

    @property
    def program(self) -> str | None:
        """Name of the program that a node must have; None: Cortex runs nothing for it."""
        ...

    @property
    def settings(self) -> type[EngineSettings]:
        """Its settings' class."""
        ...

    @property
    def answer(self) -> type[EngineSettings]:
        """The same with what is answered beside them."""
        ...

    def check(self, spec: ModelSpec) -> None:
        """Raise InvalidInput when the settings do not fit each other, the task or the mode."""
        ...

    def kind(self, spec: ModelSpec) -> EngineKind:
        """What the gateway is told of how to speak to it."""
        ...

    def gpu_counts(self, spec: ModelSpec, node_gpus: int) -> tuple[int, ...]:
        """Numbers of GPUs to try on a node that has `node_gpus`, best first; empty: it cannot run there."""
        ...

    def estimate(self, spec: ModelSpec, file: InspectReply | None, gpus: int) -> Estimate:
        """Memory of one replica on `gpus` GPUs (0: all on the host); `file` is what the node says of it."""
        ...

    def plan(self, spec: ModelSpec, slot: Slot) -> Plan:
        """What the agent is to run. Raises InvalidInput as `check`."""
        ...

    def diagnose(self, exit_: Exit) -> Reason | None:
        """The cause of an engine's end and its remedy, None when the log does not say."""
        ...

    def context_length(self, spec: ModelSpec) -> int | None:
        """Tokens that one request may hold, None: as the model's file says."""
        ...

    def file(self, spec: ModelSpec) -> str | None:
        """Path of the model's main file or folder on the node, None when it is fetched or elsewhere."""
        ...

    def external(self, spec: ModelSpec) -> list[ExternalEndpoint]:
        """Endpoints that Cortex routes to without running them; their keys are not in a spec."""
        ...


def container_name(engine_type: str, model_id: int, ordinal: int) -> str:
    """`vllm-model-7`, and `vllm-model-7-2` for the second replica on one host."""
    return f"{engine_type}-model-{model_id}" + (f"-{ordinal + 1}" if ordinal else "")


def check_env(env: Mapping[str, str], *, refused_prefixes: tuple[str, ...] = ()) -> None:
    """Raise InvalidInput for variables that are Cortex's to set, or that no process could have."""
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidInput(
                f"env: {name!r} is not a variable", code="settings.env_invalid", field="env",
                remedy="use a name without = and a value without NUL",
            )  # fmt: skip
        if name in _ENV_REFUSED or name.startswith(("LD_", *refused_prefixes)):
            raise InvalidInput(
                f"env: {name} is set by Cortex or by the host",
                code="settings.env_refused",
                field="env",
                remedy="leave it out; settings, placement and the host's own configuration set it",
            )


def check_source(
    *, local_path: str | None, repo_id: str | None, mode: Mode, needs: Literal["GGUF file", "folder"]
) -> None:
    """Raise InvalidInput unless a model has exactly one source, and one that its mode allows."""
    if (local_path is None) == (repo_id is None):
        both = local_path is not None
        raise InvalidInput(
            "both local_path and repo_id are given" if both else "neither local_path nor repo_id is given",
            code="settings.source",
            field="local_path",
            remedy=f"give local_path for a {needs} on the node, or repo_id to fetch it from Hugging Face",
        )
    if mode == "offline" and repo_id is not None:
        raise InvalidInput(
            f"mode is offline, but {repo_id} would have to be fetched",
            code="settings.offline",
            field="repo_id",
            remedy=f"give local_path of a {needs} on the node, or set mode to online",
        )


def check_task(task: Task, tasks: tuple[Task, ...], engine_type: str) -> None:
    """Raise InvalidInput when an engine cannot do a task."""
    if task not in tasks:
        raise InvalidInput(
            f"{engine_type} does not serve the task {task}", code="settings.task", field="task",
            remedy=f"use one of {', '.join(tasks)}",
        )  # fmt: skip


def literal(text: str) -> str:
    """Text as argv of a plan holds it: braces doubled, since single ones are placeholders."""
    return text.replace("{", "{{").replace("}", "}}")


def offline_env(mode: Mode) -> dict[str, str]:
    """Variables that keep Hugging Face's libraries off the network."""
    return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if mode == "offline" else {}
