"""llama-server's flags as a table: what each takes, and where it lands in the wheel's parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["FLAGS", "Choice", "Flag", "Number", "Special", "Switch", "Text", "Value"]


@dataclass(frozen=True, slots=True)
class Number:
    """A number within bounds, both included; `real` allows fractions, `times` converts its unit."""

    minimum: float = -(2**31)
    maximum: float = 2**31 - 1
    real: bool = False
    times: int = 1


@dataclass(frozen=True, slots=True)
class Text:
    """Any text that is not empty; `many` splits it at commas into a collection like the default."""

    many: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """A word that stands for a member of one of the wheel's enumerations."""

    enumeration: str
    members: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Switch:
    """A flag without a value, storing `value`."""

    value: bool


@dataclass(frozen=True, slots=True)
class Special:
    """A flag that needs code: the name of a function in `arguments`. A bare flag takes no value."""

    function: str
    takes_value: bool = True


type Value = Number | Text | Choice | Switch | Special


@dataclass(frozen=True, slots=True)
class Flag:
    """`names` as llama-server spells them; `targets` are attributes of CommonParams, dotted.

    `sampling` is the bit of common_params_sampling_config that says the user has set it, so that settings
    stored in a model file do not win over it.
    """

    names: tuple[str, ...]
    value: Value
    targets: tuple[str, ...] = field(default=())
    sampling: str = ""


def _flag(names: str, value: Value, targets: str = "", sampling: str = "") -> Flag:
    return Flag(tuple(names.split()), value, tuple(targets.split()), sampling)


def _pair(on: str, off: str, target: str, *, inverted: bool = False) -> tuple[Flag, Flag]:
    return _flag(on, Switch(not inverted), target), _flag(off, Switch(inverted), target)


_COUNT = Number(minimum=0)
_LIMIT = Number(minimum=-1)
_POSITIVE = Number(minimum=1)
_INTEGER = Number()
_REAL = Number(minimum=-1e38, maximum=1e38, real=True)
_FRACTION = Number(minimum=0, maximum=1, real=True)
_TEXT = Text()
_ON = Switch(True)
_CACHE_TYPE = Choice(
    "ggml_type",
    {
        name: f"GGML_TYPE_{name.upper()}"
        for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
    },
)


def _choice(enumeration: str, prefix: str, names: str, **renamed: str) -> Choice:
    members = {name: prefix + name.upper() for name in names.split()}
    return Choice(enumeration, members | {name: prefix + member for name, member in renamed.items()})


_MODEL = (
    _flag("-m --model", _TEXT, "model.path"),
    _flag("-a --alias", Text(many=True), "model_alias"),
    _flag("--tags", Text(many=True), "model_tags"),
    _flag("-mm --mmproj", _TEXT, "mmproj.path"),
    _flag("--no-mmproj --no-mmproj-auto", _ON, "no_mmproj"),
    _flag("--mmproj-auto", Switch(False), "no_mmproj"),
    *_pair("--mmproj-offload", "--no-mmproj-offload", "mmproj_use_gpu"),
    _flag("-mmdev --mmproj-device", _TEXT, "mmproj_device"),
    _flag("--image-min-tokens", _INTEGER, "image_min_tokens"),
    _flag("--image-max-tokens", _INTEGER, "image_max_tokens"),
    _flag("--video-fps", Number(0, 1e6, real=True), "video_fps"),
    _flag("--video-timestamp-interval", _POSITIVE, "video_timestamp_interval_ms"),
    _flag("--video-ffmpeg-dir", _TEXT, "video_ffmpeg_bin_dir"),
    _flag("--mtmd-batch-max-tokens", _POSITIVE, "mtmd_batch_max_tokens"),
    _flag("--lora", Special("lora")),
    _flag("--lora-scaled", Special("lora_scaled")),
    _flag("--lora-init-without-apply", _ON, "lora_init_without_apply"),
    _flag("--check-tensors", _ON, "check_tensors"),
    _flag("--offline", _ON, "offline"),
    _flag(
        "-lm --load-mode",
        _choice(
            "llama_load_mode",
            "LLAMA_LOAD_MODE_",
            "auto none mmap mlock",
            **{"mmap+mlock": "MMAP_MLOCK", "dio": "DIRECT_IO"},
        ),
        "load_mode",
    ),
    _flag("-lzm --lazy-mode", _choice("llama_lazy_mode", "LLAMA_LAZY_MODE_", "off auto on"), "lazy_mode"),
)

_COMPUTE = (
    _flag("-t --threads", Special("threads")),
    _flag("-tb --threads-batch", Special("threads_batch")),
    _flag("--poll", Number(0, 100), "cpuparams.poll"),
    _flag("--poll-batch", Number(0, 100), "cpuparams_batch.poll"),
    _flag("-b --batch-size", _POSITIVE, "n_batch"),
    _flag("-ub --ubatch-size", _POSITIVE, "n_ubatch"),
    _flag("-c --ctx-size", Special("context")),
    _flag("-np --parallel", Special("parallel")),
    _flag("-n --predict --n-predict", Number(minimum=-2), "n_predict"),
    _flag("--keep", _LIMIT, "n_keep"),
    _flag("--swa-full", _ON, "swa_full"),
    _flag(
        "-fa --flash-attn",
        _choice(
            "llama_flash_attn_type",
            "LLAMA_FLASH_ATTN_TYPE_",
            "auto",
            **{"on": "ENABLED", "off": "DISABLED"},
        ),
        "flash_attn_type",
    ),
    _flag("--perf", Switch(False), "no_perf sampling.no_perf"),
    _flag("--no-perf", _ON, "no_perf sampling.no_perf"),
    _flag(
        "--rope-scaling",
        _choice("llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE_", "none linear yarn"),
        "rope_scaling_type",
    ),
    _flag("--rope-scale", Special("rope_scale")),
    _flag("--rope-freq-base", Number(0, 1e38, real=True), "rope_freq_base"),
    _flag("--rope-freq-scale", Number(0, 1e38, real=True), "rope_freq_scale"),
    _flag("--yarn-orig-ctx", _COUNT, "yarn_orig_ctx"),
    _flag("--yarn-ext-factor", _REAL, "yarn_ext_factor"),
    _flag("--yarn-attn-factor", _REAL, "yarn_attn_factor"),
    _flag("--yarn-beta-slow", _REAL, "yarn_beta_slow"),
    _flag("--yarn-beta-fast", _REAL, "yarn_beta_fast"),
    *_pair("-kvo --kv-offload", "-nkvo --no-kv-offload", "no_kv_offload", inverted=True),
    *_pair("--repack", "-nr --no-repack", "no_extra_bufts", inverted=True),
    *_pair("--op-offload", "--no-op-offload", "no_op_offload", inverted=True),
    _flag("--no-host", _ON, "no_host"),
    _flag("-ctk --cache-type-k", _CACHE_TYPE, "cache_type_k"),
    _flag("-ctv --cache-type-v", _CACHE_TYPE, "cache_type_v"),
    _flag(
        "--numa",
        _choice("ggml_numa_strategy", "GGML_NUMA_STRATEGY_", "distribute isolate numactl"),
        "numa",
    ),
    _flag("-ngl --gpu-layers --n-gpu-layers", Special("gpu_layers")),
    _flag(
        "-sm --split-mode",
        _choice("llama_split_mode", "LLAMA_SPLIT_MODE_", "none layer row tensor"),
        "split_mode",
    ),
    _flag("-ts --tensor-split", Special("tensor_split")),
    _flag("-mg --main-gpu", _COUNT, "main_gpu"),
    _flag("-ot --override-tensor", Special("override_tensor")),
    _flag("--moe-cache-mib", Number(minimum=0, times=1024 * 1024), "moe_cache_size"),
    _flag("-fit --fit", Special("fit")),
    _flag("-fitt --fit-target", Special("fit_target")),
    _flag("-fitc --fit-ctx", _COUNT, "fit_params_min_ctx"),
)

_CACHE = (
    *_pair("-cb --cont-batching", "-nocb --no-cont-batching", "cont_batching"),
    *_pair("--cache-prompt", "--no-cache-prompt", "cache_prompt"),
    _flag("--cache-reuse", _COUNT, "n_cache_reuse"),
    _flag("-cram --cache-ram", _LIMIT, "cache_ram_mib"),
    *_pair("-kvu --kv-unified", "-no-kvu --no-kv-unified", "kv_unified"),
    _flag("--kv-unified-per-slot", _COUNT, "kv_unified_per_slot"),
    *_pair("--cache-idle-slots", "--no-cache-idle-slots", "cache_idle_slots"),
    *_pair("--context-shift", "--no-context-shift", "ctx_shift"),
    _flag("-ctxcp --ctx-checkpoints --swa-checkpoints", _COUNT, "n_ctx_checkpoints"),
    _flag("-cms --checkpoint-min-step", _COUNT, "checkpoint_min_step"),
    _flag("-sps --slot-prompt-similarity", _FRACTION, "slot_prompt_similarity"),
    *_pair("--warmup", "--no-warmup", "warmup"),
    _flag("--sleep-idle-seconds", Special("sleep_idle")),
)

_SPECULATIVE = (
    _flag("-md --model-draft --spec-draft-model", Special("draft_model")),
    _flag("--spec-type", Special("speculative_types")),
    _flag("--spec-draft-n-max", _COUNT, "speculative.draft.n_max"),
    _flag("--spec-draft-n-min", _COUNT, "speculative.draft.n_min"),
    _flag("--spec-draft-p-min --draft-p-min", _FRACTION, "speculative.draft.p_min"),
    _flag("--spec-draft-p-split --draft-p-split", _FRACTION, "speculative.draft.p_split"),
    _flag("-ngld --spec-draft-ngl --gpu-layers-draft --n-gpu-layers-draft", Special("gpu_layers_draft")),
    _flag("-td --spec-draft-threads --threads-draft", Special("threads_draft")),
    _flag("-tbd --spec-draft-threads-batch --threads-batch-draft", Special("threads_batch_draft")),
    _flag("-ctkd --spec-draft-type-k --cache-type-k-draft", _CACHE_TYPE, "speculative.draft.cache_type_k"),
    _flag("-ctvd --spec-draft-type-v --cache-type-v-draft", _CACHE_TYPE, "speculative.draft.cache_type_v"),
    _flag("--spec-ngram-mod-n-min", _COUNT, "speculative.ngram_mod.n_min"),
    _flag("--spec-ngram-mod-n-max", _COUNT, "speculative.ngram_mod.n_max"),
    _flag("--spec-ngram-mod-n-match", _COUNT, "speculative.ngram_mod.n_match"),
    *(
        _flag(f"--spec-ngram-{kind}-{size}", _POSITIVE, f"speculative.ngram_{kind}.{size}".replace("-", "_"))
        for kind in ("simple", "map-k", "map-k4v")
        for size in ("size-n", "size-m", "min-hits")
    ),
    *_pair(
        "--spec-draft-backend-sampling",
        "--no-spec-draft-backend-sampling",
        "speculative.draft.backend_sampling",
    ),
    _flag("-lcs --lookup-cache-static", _TEXT, "speculative.ngram_cache.lookup_cache_static"),
    _flag("-lcd --lookup-cache-dynamic", _TEXT, "speculative.ngram_cache.lookup_cache_dynamic"),
)

_SERVER = (
    _flag("--host", Text(many=True), "hostnames"),
    _flag("--port", Number(0, 65535), "port"),
    _flag("--reuse-port", _ON, "reuse_port"),
    _flag("--path", _TEXT, "public_path"),
    _flag("--api-prefix", _TEXT, "api_prefix"),
    _flag("--api-key", Special("api_key")),
    _flag("--api-key-file", Special("api_key_file")),
    _flag("--ssl-key-file", _TEXT, "ssl_file_key"),
    _flag("--ssl-cert-file", _TEXT, "ssl_file_cert"),
    _flag("--cors-origins", Special("cors_origins")),
    _flag("--cors-methods", _TEXT, "cors_methods"),
    _flag("--cors-headers", _TEXT, "cors_headers"),
    *_pair("--cors-credentials", "--no-cors-credentials", "cors_credentials"),
    _flag("-to --timeout", _COUNT, "timeout_read timeout_write"),
    _flag("--sse-ping-interval", _LIMIT, "sse_ping_interval"),
    _flag("--threads-http", _LIMIT, "n_threads_http"),
    _flag("--metrics", _ON, "endpoint_metrics"),
    _flag("--props", _ON, "endpoint_props"),
    *_pair("--slots", "--no-slots", "endpoint_slots"),
    _flag("--slot-save-path", Special("slot_save_path")),
    *_pair("--ui --webui", "--no-ui --no-webui", "ui"),
    _flag("-lv --verbosity --log-verbosity", _COUNT, "verbosity"),
    _flag("-v --verbose --log-verbose", Special("verbose", takes_value=False)),
)

_MODEL_USE = (
    _flag("--embedding --embeddings", _ON, "embedding"),
    _flag("--rerank --reranking", Special("rerank", takes_value=False)),
    _flag(
        "--pooling",
        _choice("llama_pooling_type", "LLAMA_POOLING_TYPE_", "none mean cls last rank"),
        "pooling_type",
    ),
    _flag("--embd-normalize", _LIMIT, "embd_normalize"),
    *_pair("--jinja", "--no-jinja", "use_jinja"),
    _flag("--chat-template", _TEXT, "chat_template"),
    _flag("--chat-template-file", Special("chat_template_file")),
    _flag("--chat-template-kwargs", Special("chat_template_kwargs")),
    _flag(
        "--reasoning-format",
        _choice(
            "common_reasoning_format",
            "COMMON_REASONING_FORMAT_",
            "none auto deepseek",
            **{"deepseek-legacy": "DEEPSEEK_LEGACY"},
        ),
        "reasoning_format",
    ),
    _flag("-rea --reasoning", Special("reasoning")),
    _flag("--reasoning-budget", _LIMIT, "sampling.reasoning_budget_tokens"),
    _flag("--reasoning-budget-message", _TEXT, "sampling.reasoning_budget_message"),
    *_pair("--skip-chat-parsing", "--no-skip-chat-parsing", "force_pure_content_parser"),
    *_pair("--prefill-assistant", "--no-prefill-assistant", "prefill_assistant"),
    _flag("-sp --special", _ON, "special"),
)

_SAMPLING = (
    _flag("-s --seed", Special("seed")),
    _flag("--samplers", Special("samplers"), sampling="SAMPLERS"),
    _flag("--ignore-eos", _ON, "sampling.ignore_eos"),
    _flag("--temp --temperature", _REAL, "sampling.temp", "TEMP"),
    _flag("--top-k", _INTEGER, "sampling.top_k", "TOP_K"),
    _flag("--top-p", _REAL, "sampling.top_p", "TOP_P"),
    _flag("--min-p", _REAL, "sampling.min_p", "MIN_P"),
    _flag("--xtc-probability", _REAL, "sampling.xtc_probability", "XTC_PROBABILITY"),
    _flag("--xtc-threshold", _REAL, "sampling.xtc_threshold", "XTC_THRESHOLD"),
    _flag("--typical --typical-p", _REAL, "sampling.typ_p"),
    _flag("--repeat-last-n", _LIMIT, "sampling.penalty_last_n", "PENALTY_LAST_N"),
    _flag("--repeat-penalty", _REAL, "sampling.penalty_repeat", "PENALTY_REPEAT"),
    _flag("--presence-penalty", _REAL, "sampling.penalty_present"),
    _flag("--frequency-penalty", _REAL, "sampling.penalty_freq"),
    _flag("--dry-multiplier", _REAL, "sampling.dry_multiplier"),
    _flag("--dry-base", _REAL, "sampling.dry_base"),
    _flag("--dry-allowed-length", _INTEGER, "sampling.dry_allowed_length"),
    _flag("--dry-penalty-last-n", _LIMIT, "sampling.dry_penalty_last_n"),
    _flag("--adaptive-target", _REAL, "sampling.adaptive_target"),
    _flag("--adaptive-decay", _REAL, "sampling.adaptive_decay"),
    _flag("--dynatemp-range", _REAL, "sampling.dynatemp_range"),
    _flag("--dynatemp-exp", _REAL, "sampling.dynatemp_exponent"),
    _flag("--mirostat", Number(0, 2), "sampling.mirostat", "MIROSTAT"),
    _flag("--mirostat-lr", _REAL, "sampling.mirostat_eta", "MIROSTAT_ETA"),
    _flag("--mirostat-ent", _REAL, "sampling.mirostat_tau", "MIROSTAT_TAU"),
)

FLAGS: dict[str, Flag] = {
    name: flag
    for flag in (*_MODEL, *_COMPUTE, *_CACHE, *_SPECULATIVE, *_SERVER, *_MODEL_USE, *_SAMPLING)
    for name in flag.names
}
"""Every accepted spelling; --help and --version are the program's own."""
