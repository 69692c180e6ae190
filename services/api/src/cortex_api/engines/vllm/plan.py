"""A vLLM model's plan: `vllm serve` with its arguments."""

from cortex_shared.contracts.plan import Marker, MetricNames, ModelFile, Plan, Probe
from cortex_shared.contracts.routes import Task
from cortex_shared.engine_keys import ENGINE_KEY
from cortex_shared.errors import InvalidInput

from cortex_api.engines.arguments import check_extra, render, spelled
from cortex_api.engines.base import (
    ModelSpec,
    Slot,
    check_env,
    check_source,
    check_task,
    container_name,
    literal,
    offline_env,
)
from cortex_api.engines.vllm.flags import CODE, FLAGS, OWNED, REFUSED
from cortex_api.engines.vllm.memory import HOST_CACHE_BYTES
from cortex_api.engines.vllm.settings import VllmSettings

PROGRAM = "vllm"
TASKS: tuple[Task, ...] = ("chat", "completion", "embedding", "rerank")

_METRICS = MetricNames(
    requests_running="vllm:num_requests_running",
    requests_waiting="vllm:num_requests_waiting",
    prompt_tokens_total="vllm:prompt_tokens_total",
    generation_tokens_total="vllm:generation_tokens_total",
    kv_cache_usage_ratio="vllm:kv_cache_usage_perc",
)
_MARKERS = [
    Marker(text="Starting to load model", phase="loading"),
    Marker(text="Loading weights took", phase="loading"),
    Marker(text="Loading safetensors checkpoint shards", phase="loading"),
]
_RUNNER = {
    "chat": [],
    "completion": [],
    "embedding": ["--runner", "pooling", "--convert", "embed"],
    "rerank": ["--runner", "pooling", "--convert", "classify"],
}


def check(spec: ModelSpec) -> None:
    """Raise InvalidInput when settings do not fit each other, the task or the mode."""
    settings = VllmSettings.of(spec)
    check_task(spec.task, TASKS, "vLLM")
    check_source(local_path=settings.local_path, repo_id=settings.repo_id, mode=spec.mode, needs="folder")
    if settings.local_path is not None and settings.revision is not None:
        raise _invalid("revision", "revision goes with repo_id, not with local_path", "leave revision out")
    if settings.swap_space_gb is not None:
        raise _invalid(
            "swap_space_gb",
            "vLLM no longer has swap space: requests that do not fit are computed anew",
            "leave swap_space_gb out; to keep KV cache in host memory write"
            f' ["--kv-offloading-size", "{settings.swap_space_gb:g}"] in extra_args',
        )
    if settings.kv_cache_memory_bytes is not None and settings.gpu_memory_utilization is not None:
        raise _invalid(
            "kv_cache_memory_bytes",
            "kv_cache_memory_bytes makes vLLM ignore gpu_memory_utilization",
            "give one of the two",
        )
    if settings.enforce_eager and settings.cuda_graph_sizes is not None:
        raise _invalid("cuda_graph_sizes", "enforce_eager captures no CUDA graphs", "give one of the two")
    if settings.enable_auto_tool_choice and settings.tool_call_parser is None:
        raise _invalid(
            "tool_call_parser", "enable_auto_tool_choice needs to know how the model writes tool calls",
            "give tool_call_parser, for instance hermes or llama3_json",
        )  # fmt: skip
    if (
        settings.max_num_seqs is not None
        and settings.max_num_batched_tokens is not None
        and settings.max_num_batched_tokens < settings.max_num_seqs
    ):
        raise _invalid(
            "max_num_batched_tokens", "max_num_batched_tokens is smaller than max_num_seqs",
            "raise max_num_batched_tokens",
        )  # fmt: skip
    check_extra(settings.extra_args, OWNED, REFUSED, engine=PROGRAM, watched=CODE)
    check_env(settings.env, refused_prefixes=("VLLM_API_KEY", "VLLM_HOST", "VLLM_PORT"))


def plan(spec: ModelSpec, slot: Slot) -> Plan:
    """What the agent is to run; raises InvalidInput as `check`."""
    check(spec)
    settings = VllmSettings.of(spec)
    argv = ["serve", "{model}", "--host", "{host}", "--port", "{port}"]
    argv += ["--served-model-name", literal(spec.served_model_name)]
    argv += _RUNNER[spec.task]
    if settings.tp_size > 1:
        argv += ["--tensor-parallel-size", str(settings.tp_size)]
    if settings.pipeline_parallel_size > 1:
        argv += ["--pipeline-parallel-size", str(settings.pipeline_parallel_size)]
    if not slot.gpus and settings.kv_cache_memory_bytes is None and settings.gpu_memory_utilization is None:
        argv += ["--kv-cache-memory-bytes", str(HOST_CACHE_BYTES)]
    argv += render(FLAGS, settings)
    argv += [literal(argument) for argument in settings.extra_args]
    secrets = {"VLLM_API_KEY": ENGINE_KEY}
    if spec.has_hf_token:
        secrets["HF_TOKEN"] = "hf_token"
    brings_code = any(spelled(argument) in CODE for argument in settings.extra_args)
    return Plan(
        program=PROGRAM,
        argv=argv,
        env={"VLLM_NO_USAGE_STATS": "1"} | settings.env | offline_env(spec.mode),
        secrets=secrets,
        image=_image(spec) if slot.runtime == "docker" else None,
        container_name=container_name("vllm", spec.id, slot.ordinal),
        files=[
            ModelFile(
                path=settings.local_path,
                repo_id=settings.repo_id,
                revision=settings.revision,
                format="folder",
            )
        ],
        gpus=list(slot.gpus),
        # Three processes import for 30 s and more, so probing faster than this only costs.
        probe=Probe(path="/health", starting_interval_seconds=0.25),
        markers=_MARKERS,
        metrics=_METRICS,
        start_seconds_max=3600,
        grace_seconds=20,
        remote_code=settings.trust_remote_code or brings_code,
    )


def _image(spec: ModelSpec) -> str | None:
    if spec.engine_image is not None or spec.engine_version is None:
        return spec.engine_image
    return f"vllm/vllm-openai:v{spec.engine_version}"


def _invalid(field: str, message: str, remedy: str) -> InvalidInput:
    return InvalidInput(message, code="settings.invalid", field=field, remedy=remedy)
