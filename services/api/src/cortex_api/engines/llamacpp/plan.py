"""A llama.cpp model's plan: the argv of llama-server, for whatever a host maps that program to."""

from cortex_shared.contracts.plan import Marker, MetricNames, ModelFile, Plan, Probe
from cortex_shared.contracts.routes import Task
from cortex_shared.engine_keys import ENGINE_KEY
from cortex_shared.errors import InvalidInput

from cortex_api.engines.arguments import check_extra, render, shown
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
from cortex_api.engines.llamacpp.flags import FLAGS, OWNED, REFUSED
from cortex_api.engines.llamacpp.settings import LlamaCppSettings

PROGRAM = "llama-server"
TASKS: tuple[Task, ...] = ("chat", "completion", "embedding", "rerank")

# An embedding model reads a whole text in one physical batch, so the batch bounds the text.
_EMBEDDING_BATCH_MAX = 8192

_METRICS = MetricNames(
    requests_running="llamacpp:requests_processing",
    requests_waiting="llamacpp:requests_deferred",
    prompt_tokens_total="llamacpp:prompt_tokens_total",
    generation_tokens_total="llamacpp:tokens_predicted_total",
)
_MARKERS = [
    Marker(text="loading model", phase="loading"),
    Marker(text="llama_model_loader: loaded meta data", phase="loading"),
]


def check(spec: ModelSpec) -> None:
    """Raise InvalidInput when settings do not fit each other, the task or the mode."""
    settings = LlamaCppSettings.of(spec)
    check_task(spec.task, TASKS, "llama.cpp")
    check_source(local_path=settings.local_path, repo_id=settings.repo_id, mode=spec.mode, needs="GGUF file")
    if settings.repo_id is not None and settings.filename is None:
        raise _invalid(
            "filename", f"which file of {settings.repo_id} is meant is not said", "give filename, for"
            " instance *Q4_K_M.gguf",
        )  # fmt: skip
    if settings.local_path is not None and (settings.filename or settings.revision):
        field = "filename" if settings.filename else "revision"
        raise _invalid(field, f"{field} goes with repo_id, not with local_path", f"leave {field} out")
    _check_gpus(settings)
    if (
        settings.flash_attention is False
        and settings.cache_type_v is not None
        and settings.cache_type_v not in ("f32", "f16", "bf16")
    ):
        raise _invalid(
            "cache_type_v",
            f"cache_type_v {settings.cache_type_v} needs flash attention, which is off",
            "leave flash_attention out, or use cache_type_v f16",
        )
    if settings.draft_tokens_max is not None and settings.draft_model_path is None:
        raise _invalid(
            "draft_tokens_max", "draft_tokens_max is set without a draft model", "give draft_model_path"
        )
    batch = settings.batch_size or 2048
    if spec.task not in ("embedding", "rerank") and settings.ubatch_size and settings.ubatch_size > batch:
        raise _invalid(
            "ubatch_size", f"ubatch_size {settings.ubatch_size} is larger than batch_size {batch}",
            "raise batch_size or lower ubatch_size",
        )  # fmt: skip
    if spec.task != "embedding" and settings.pooling is not None:
        raise _invalid("pooling", f"pooling means nothing for the task {spec.task}", "leave pooling out")
    check_extra(settings.extra_args, OWNED, REFUSED, engine=PROGRAM)
    check_env(settings.env, refused_prefixes=("LLAMA_ARG_", "LLAMA_API_KEY"))


def _check_gpus(settings: LlamaCppSettings) -> None:
    split = settings.tensor_split
    if split is not None:
        if not split or sum(split) <= 0:
            raise _invalid("tensor_split", "tensor_split has no share above 0", "write shares like [3, 1]")
        if settings.ngl == 0:
            raise _invalid(
                "tensor_split", "tensor_split is set, but ngl 0 puts nothing on GPUs", "raise ngl or leave"
                " tensor_split out",
            )  # fmt: skip
        if settings.split_mode == "none" and len(split) > 1:
            raise _invalid(
                "tensor_split",
                f"tensor_split has {len(split)} shares, but split_mode none uses one GPU",
                "use split_mode layer, or leave tensor_split out",
            )
    if settings.main_gpu is not None and settings.main_gpu >= len(split or [0]) and settings.main_gpu > 0:
        gpus = len(split or [0])
        raise _invalid(
            "main_gpu",
            f"main_gpu {settings.main_gpu} is not among the instance's GPUs 0 to {gpus - 1}",
            "give tensor_split a share for each GPU, or leave main_gpu out",
        )


def plan(spec: ModelSpec, slot: Slot) -> Plan:
    """What the agent is to run; raises InvalidInput as `check`."""
    check(spec)
    settings = LlamaCppSettings.of(spec)
    files = _files(settings)
    argv = ["--model", "{model}", "--alias", literal(spec.served_model_name)]
    argv += ["--host", "{host}", "--port", "{port}", "--metrics", "--slots"]
    argv += _context(settings)
    argv += ["--threads", str(settings.threads or max(1, slot.cpus // 2))]
    argv += ["--gpu-layers", str(settings.ngl) if slot.gpus else "0"]
    argv += _task(spec.task, settings)
    if settings.flash_attention is not None:
        words = {True: "on", False: "off", "auto": "auto"}
        argv += ["--flash-attn", words[settings.flash_attention]]
    if mode := _load_mode(settings):
        argv += ["--load-mode", mode]
    if settings.mmproj is not None:
        argv += ["--mmproj", "{mmproj}"]
    if settings.lora:
        scaled = [f"{{lora{n}}}:{shown(adapter.scale)}" for n, adapter in enumerate(settings.lora)]
        argv += ["--lora-scaled", ",".join(scaled)]
    if settings.draft_model_path is not None:
        argv += ["--spec-draft-model", "{draft}", "--spec-type", "draft-simple"]
    argv += render(FLAGS, settings)
    argv += [literal(argument) for argument in settings.extra_args]
    secrets = {"LLAMA_API_KEY": ENGINE_KEY}
    if spec.has_hf_token:
        secrets["HF_TOKEN"] = "hf_token"
    return Plan(
        program=PROGRAM,
        argv=argv,
        env=settings.env | offline_env(spec.mode),
        secrets=secrets,
        image=_image(spec) if slot.runtime == "docker" else None,
        container_name=container_name("llamacpp", spec.id, slot.ordinal),
        files=files,
        gpus=list(slot.gpus),
        probe=Probe(path="/health"),
        markers=_MARKERS,
        metrics=_METRICS,
        start_seconds_max=1800,
        grace_seconds=10,
    )


def _files(settings: LlamaCppSettings) -> list[ModelFile]:
    if settings.local_path is not None:
        files = [ModelFile(path=settings.local_path, format="gguf")]
    else:
        files = [
            ModelFile(
                repo_id=settings.repo_id,
                filename=settings.filename,
                revision=settings.revision,
                format="gguf",
            )
        ]
    if settings.mmproj is not None:
        files.append(ModelFile(name="mmproj", path=settings.mmproj, format="gguf"))
    if settings.draft_model_path is not None:
        files.append(ModelFile(name="draft", path=settings.draft_model_path, format="gguf"))
    for number, adapter in enumerate(settings.lora):
        files.append(ModelFile(name=f"lora{number}", path=adapter.path, format="gguf"))
    return files


def _context(settings: LlamaCppSettings) -> list[str]:
    argv = ["--ctx-size", str(settings.context_size * settings.parallel_slots)]
    argv += ["--parallel", str(settings.parallel_slots)]
    if settings.context_size == 0 and settings.parallel_slots > 1:
        # The model's whole context would be divided among the slots; unified, each may use all of it.
        argv.append("--kv-unified")
    return argv


def _task(task: Task, settings: LlamaCppSettings) -> list[str]:
    batch, ubatch = settings.batch_size, settings.ubatch_size
    argv: list[str] = []
    if task in ("embedding", "rerank"):
        argv.append("--embeddings" if task == "embedding" else "--reranking")
        ubatch = ubatch or batch or min(_EMBEDDING_BATCH_MAX, settings.context_size or _EMBEDDING_BATCH_MAX)
        batch = batch or ubatch
    if batch is not None:
        argv += ["--batch-size", str(batch)]
    if ubatch is not None:
        argv += ["--ubatch-size", str(ubatch)]
    return argv


def _load_mode(settings: LlamaCppSettings) -> str | None:
    """--load-mode took the place of --mlock, --no-mmap and --mmap in 2026."""
    if settings.mlock:
        return "mlock" if settings.no_mmap else "mmap+mlock"
    return "none" if settings.no_mmap else None


def _image(spec: ModelSpec) -> str | None:
    if spec.engine_image is not None or spec.engine_version is None:
        return spec.engine_image
    return f"ghcr.io/ggml-org/llama.cpp:server-cuda-{spec.engine_version}"


def _invalid(field: str, message: str, remedy: str) -> InvalidInput:
    return InvalidInput(message, code="settings.invalid", field=field, remedy=remedy)
