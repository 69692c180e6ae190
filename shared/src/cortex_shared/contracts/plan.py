"""Plan: what an agent executes for one instance. Says nothing about which engine it is."""

from typing import Literal

from pydantic import Field

from cortex_shared.contracts.base import Contract


class ModelFile(Contract):
    """Files that must be on the host before the program starts.

    `name` is the placeholder in argv that the resolved absolute path fills: `model` fills `{model}`.
    Either `path` (absolute, or relative to one of the host's model roots) or `repo_id` (a Hugging Face
    repository, of which `filename` is one file, or a pattern; none: the whole repository as a folder).
    """

    name: str = "model"
    path: str | None = None
    repo_id: str | None = None
    revision: str | None = None
    filename: str | None = None
    format: Literal["gguf", "folder", "file"] = "file"


class Probe(Contract):
    """An HTTP GET on the instance's own address; status 200 passes."""

    path: str = "/health"
    starting_interval_seconds: float = Field(default=0.05, gt=0)
    interval_seconds: float = Field(default=5.0, gt=0)
    timeout_seconds: float = Field(default=5.0, gt=0)
    failures_max: int = Field(default=3, ge=1)


class Marker(Contract):
    """A substring of a log line that shows how far a start has come."""

    text: str
    phase: Literal["starting", "loading"]


class MetricNames(Contract):
    """Names of the engine's Prometheus metrics at `path`, None where it has none."""

    path: str = "/metrics"
    requests_running: str | None = None
    requests_waiting: str | None = None
    prompt_tokens_total: str | None = None
    generation_tokens_total: str | None = None
    kv_cache_usage_ratio: str | None = None


class Plan(Contract):
    """Everything an agent needs to run one instance; hashed (`content_hash`) before anything is filled in.

    argv holds placeholders `{host}`, `{port}` and `{<name>}` of each file; doubled braces are literal.
    env is plain; `secrets` maps an environment variable to the name of a secret that the agent asks for.
    """

    program: str
    argv: list[str]
    env: dict[str, str] = Field(default_factory=dict[str, str])
    secrets: dict[str, str] = Field(default_factory=dict[str, str])
    image: str | None = None
    container_name: str
    files: list[ModelFile] = Field(default_factory=list[ModelFile])
    port: int | None = None
    gpus: list[str] = Field(default_factory=list[str])
    probe: Probe = Probe()
    markers: list[Marker] = Field(default_factory=list[Marker])
    metrics: MetricNames = MetricNames()
    start_seconds_max: float = Field(default=1800, gt=0)
    grace_seconds: float = Field(default=10, ge=0)
    drain_seconds: float = Field(default=30, ge=0)
    remote_code: bool = False
