"""llama.cpp's settings, as llama-server 0.7.0 (build 11669) has them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cortex_api.engines.base import RunSettings

type CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]


def _shares(value: Any) -> Any:
    # People write 3,1 as llama-server takes it.
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value


class LoraAdapter(BaseModel):
    """A LoRA adapter in GGUF form."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, description="File on the node, absolute or relative to a model root.")
    scale: float = Field(default=1.0, description="Strength; 1 is as trained.")


class LlamaCppSettings(RunSettings):
    """Settings of a model that llama.cpp serves."""

    engine_type: Literal["llamacpp"] = Field(default="llamacpp", description="Which engine this is.")

    local_path: str | None = Field(
        default=None,
        min_length=1,
        description="GGUF file on the node, absolute or relative to one of its model roots;"
        " of a split model, the first part.",
    )
    repo_id: str | None = Field(
        default=None,
        min_length=1,
        description="Hugging Face repository, from which the node fetches `filename`.",
    )
    filename: str | None = Field(
        default=None,
        min_length=1,
        description="File in the repository, or a pattern like *Q4_K_M.gguf.",
    )
    revision: str | None = Field(
        default=None, min_length=1, description="Branch, tag or commit of the repository."
    )
    mmproj: str | None = Field(
        default=None, min_length=1, description="GGUF file on the node with the projector of a vision model."
    )
    lora: list[LoraAdapter] = Field(
        default_factory=list[LoraAdapter], max_length=32, description="LoRA adapters to apply."
    )
    draft_model_path: str | None = Field(
        default=None,
        min_length=1,
        description="GGUF file on the node of a small model that drafts for speculative decoding.",
    )
    draft_tokens_max: int | None = Field(
        default=None, ge=1, le=64, description="Tokens to draft at a time (engine's default: 3)."
    )

    ngl: Annotated[int, Field(ge=0, le=100_000)] | Literal["auto", "all"] = Field(
        default="auto",
        description="Layers on the GPUs: a number, all, or auto (as many as fit; none without a GPU).",
    )
    tensor_split: Annotated[
        list[Annotated[float, Field(ge=0)]] | None, Field(max_length=16), BeforeValidator(_shares)
    ] = Field(
        default=None,
        description="Share of the model for each GPU, for instance [3, 1]; as many GPUs as there are shares.",
    )
    main_gpu: int | None = Field(
        default=None,
        ge=0,
        le=15,
        description="Index among the instance's GPUs of the one for small tensors and results.",
    )
    split_mode: Literal["none", "layer", "row", "tensor"] | None = Field(
        default=None, description="How the model is split over several GPUs (engine's default: layer)."
    )

    context_size: int = Field(
        default=4096,
        ge=0,
        le=16_777_216,
        description="Tokens that one request may hold, prompt and answer; 0: as the model was trained."
        " llama-server is given this times parallel_slots, since its own number is shared by all slots.",
    )
    parallel_slots: int = Field(
        default=4, ge=1, le=256, description="Requests that are worked on at once, per replica."
    )
    batch_size: int | None = Field(
        default=None, ge=1, le=1_048_576, description="Tokens of a logical batch (engine's default: 2048)."
    )
    ubatch_size: int | None = Field(
        default=None, ge=1, le=1_048_576, description="Tokens of a physical batch (engine's default: 512)."
    )
    cont_batching: bool | None = Field(
        default=None, description="Continuous batching (engine's default: on)."
    )
    cache_reuse: int | None = Field(
        default=None, ge=0, description="Least tokens of a chunk that is reused from the cache by shifting."
    )
    cache_ram_mib: int | None = Field(
        default=None,
        ge=-1,
        description="MiB of host memory for prompts of idle slots; 0: none, -1: no bound"
        " (engine's default: 8192).",
    )
    cache_type_k: CacheType | None = Field(
        default=None, description="Data type of the KV cache's keys (engine's default: f16)."
    )
    cache_type_v: CacheType | None = Field(
        default=None,
        description="Data type of the KV cache's values (engine's default: f16); quantized ones need"
        " flash_attention.",
    )
    flash_attention: bool | Literal["auto"] | None = Field(
        default=None, description="Flash attention: true, false or auto (engine's default: auto)."
    )

    threads: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="Threads that generate. Default: half of the node's CPUs, at least 1; llama.cpp's"
        " threads spin while they wait, so as many as there are CPUs starve everything else.",
    )
    threads_batch: int | None = Field(
        default=None, ge=1, le=512, description="Threads that read prompts (default: as threads)."
    )
    mlock: bool = Field(default=False, description="Lock the model in memory (--load-mode mlock).")
    no_mmap: bool = Field(
        default=False, description="Read the model into memory instead of mapping its file."
    )
    numa_policy: Literal["distribute", "isolate", "numactl"] | None = Field(
        default=None, description="How threads and memory are spread over NUMA nodes."
    )

    rope_freq_base: float | None = Field(
        default=None, gt=0, description="RoPE base frequency (default: as the model's file says)."
    )
    rope_freq_scale: float | None = Field(
        default=None, gt=0, description="RoPE frequency scale; 0.5 doubles the context."
    )

    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = Field(
        default=None, description="Pooling of embeddings (default: as the model's file says)."
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        max_length=100_000,
        description="Jinja chat template, or the name of one that llama.cpp has built in.",
    )
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] | None = Field(
        default=None, description="How thoughts are told apart from the answer (engine's default: auto)."
    )
