"""vLLM's settings, as vLLM 0.32 has them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cortex_api.engines.base import RunSettings

type KvCacheType = Literal[
    "auto",
    "bfloat16",
    "float16",
    "fp8",
    "fp8_ds_mla",
    "fp8_e4m3",
    "fp8_e5m2",
    "fp8_inc",
    "fp8_per_token_head",
    "int4_per_token_head",
    "int8_per_token_head",
    "nvfp4",
]


def _sizes(value: Any) -> Any:
    # People write 1,2,4,8.
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value


class VllmSettings(RunSettings):
    """Settings of a model that vLLM serves."""

    engine_type: Literal["vllm"] = Field(default="vllm", description="Which engine this is.")

    repo_id: str | None = Field(
        default=None, min_length=1, description="Hugging Face repository, which the node fetches first."
    )
    local_path: str | None = Field(
        default=None,
        min_length=1,
        description="Folder on the node with config.json and weights, absolute or relative to a model root.",
    )
    revision: str | None = Field(
        default=None, min_length=1, description="Branch, tag or commit of the repository."
    )
    tokenizer: str | None = Field(
        default=None, min_length=1, description="Tokenizer's folder or repository, if not the model's own."
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that comes with the model; the node's policy must allow it, too.",
    )

    dtype: Literal["auto", "bfloat16", "float", "float16", "float32", "half"] | None = Field(
        default=None, description="Data type of weights and activations (engine's default: auto)."
    )
    quantization: str | None = Field(
        default=None,
        min_length=1,
        pattern=r"^[A-Za-z0-9_-]+$",
        description="Quantization method (default: as the model's config says).",
    )
    tp_size: int = Field(default=1, ge=1, le=64, description="GPUs over which each layer is split.")
    pipeline_parallel_size: int = Field(
        default=1, ge=1, le=64, description="Groups of GPUs over which the layers are dealt out."
    )
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of each GPU's memory that vLLM takes, with KV cache (engine's default: 0.92).",
    )
    kv_cache_memory_bytes: int | None = Field(
        default=None,
        ge=1_048_576,
        description="Bytes of KV cache on each GPU, instead of what gpu_memory_utilization leaves.",
    )
    kv_cache_dtype: KvCacheType | None = Field(
        default=None, description="Data type of the KV cache (engine's default: auto)."
    )
    block_size: int | None = Field(default=None, ge=1, le=1024, description="Tokens of a KV cache block.")
    swap_space_gb: float | None = Field(
        default=None,
        ge=0,
        description="No longer in vLLM: refused. Use kv-offloading-size in extra_args.",
    )

    max_model_len: int | None = Field(
        default=None, ge=1, description="Tokens that one request may hold (default: as the model's config)."
    )
    max_num_seqs: int | None = Field(
        default=None, ge=1, description="Requests that are worked on at once, per replica."
    )
    max_num_batched_tokens: int | None = Field(default=None, ge=1, description="Tokens of one step.")
    enable_prefix_caching: bool | None = Field(
        default=None, description="Reuse the KV cache of equal beginnings (engine's default: on)."
    )
    enable_chunked_prefill: bool | None = Field(
        default=None, description="Split long prompts over several steps (engine's default: on)."
    )
    enforce_eager: bool | None = Field(
        default=None, description="No CUDA graphs: starts sooner, answers slower (engine's default: off)."
    )
    cuda_graph_sizes: Annotated[
        list[Annotated[int, Field(ge=1)]] | None, Field(max_length=512), BeforeValidator(_sizes)
    ] = Field(
        default=None,
        description="Batch sizes for which CUDA graphs are captured (--cudagraph-capture-sizes).",
    )
    seed: int | None = Field(default=None, ge=0, description="Seed of random numbers (engine's default: 0).")

    chat_template: str | None = Field(
        default=None,
        min_length=1,
        max_length=100_000,
        description="Path of a Jinja chat template on the node, or the template itself in one line.",
    )
    enable_auto_tool_choice: bool | None = Field(
        default=None, description="Let the model decide to call tools; needs tool_call_parser."
    )
    tool_call_parser: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_.-]+$", description="How the model writes tool calls."
    )
    reasoning_parser: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_.-]+$", description="How the model writes thoughts."
    )
