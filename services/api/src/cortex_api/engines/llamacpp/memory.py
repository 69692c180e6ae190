"""How much memory a llama.cpp replica needs, from its file's header where a node has read it."""

from cortex_shared.contracts.rpc import InspectReply

from cortex_api.engines.base import Estimate, ModelSpec
from cortex_api.engines.llamacpp.settings import LlamaCppSettings

_MIB = 2**20
# Bytes of one element: ggml's block sizes, for instance q8_0 stores 32 values in 34 bytes.
_ELEMENT_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
_PROCESS_MIB = 64
_CUDA_CONTEXT_MIB = 500
# Assumed of a file that nobody has read: 512 MiB, so that small models start on small machines.
_UNKNOWN_WEIGHTS_MIB = 512


def estimate(spec: ModelSpec, file: InspectReply | None, gpus: int) -> Estimate:
    """Weights, KV cache, compute buffers and the process; split evenly over `gpus`."""
    settings = LlamaCppSettings.of(spec)
    lines: list[str] = []
    weights = _weights(file, lines)
    cache = _kv_cache(settings, file, lines)
    buffers = _buffers(settings, file)
    lines.append(f"compute buffers: {buffers} MiB")
    total = weights + cache + buffers
    if gpus == 0:
        lines.append(f"process: {_PROCESS_MIB} MiB")
        lines.append(f"all on the host: {total + _PROCESS_MIB} MiB")
        return Estimate(host_mib=total + _PROCESS_MIB, explanation=tuple(lines))
    on_gpus = total
    host = 2 * _PROCESS_MIB
    blocks = file.block_count if file is not None else None
    if isinstance(settings.ngl, int) and blocks and settings.ngl <= blocks:
        # Layers count from the last; the output layer is one more than the blocks.
        share = settings.ngl / (blocks + 1)
        on_gpus = int((weights + cache) * share) + buffers
        host += weights + cache - int((weights + cache) * share)
        lines.append(f"ngl {settings.ngl} of {blocks + 1} layers on GPUs, the rest on the host")
    # Uneven splits: the largest share decides what a GPU must have.
    shares = settings.tensor_split or [1.0] * gpus
    largest = max(shares) / sum(shares)
    per_gpu = int(on_gpus * largest) + _CUDA_CONTEXT_MIB
    lines.append(f"on each of {gpus} GPU(s): at most {per_gpu} MiB with {_CUDA_CONTEXT_MIB} MiB of context")
    lines.append(f"on the host: {host} MiB")
    return Estimate(host_mib=host, gpu_mib=per_gpu, explanation=tuple(lines))


def _weights(file: InspectReply | None, lines: list[str]) -> int:
    if file is None or file.size_bytes is None:
        lines.append(f"weights: {_UNKNOWN_WEIGHTS_MIB} MiB assumed, no node has read the file yet")
        return _UNKNOWN_WEIGHTS_MIB
    weights = -(-file.size_bytes // _MIB)
    lines.append(f"weights: {weights} MiB, the file's size")
    return weights


def _kv_cache(settings: LlamaCppSettings, file: InspectReply | None, lines: list[str]) -> int:
    """2 (keys, values) x layers x KV heads x head size x element bytes x tokens."""
    known = file is not None and file.block_count and file.embedding_length and file.head_count
    if file is None or not known:
        lines.append("KV cache: 256 MiB assumed")
        return 256
    assert file.block_count
    assert file.embedding_length
    assert file.head_count
    context = settings.context_size or file.context_length or 4096
    # With context_size 0 the slots share one context; see plan._context.
    tokens = context * (settings.parallel_slots if settings.context_size else 1)
    heads = file.head_count_kv or file.head_count
    per_side = file.block_count * heads * (file.embedding_length // file.head_count)
    element = sum(_ELEMENT_BYTES[kind or "f16"] for kind in (settings.cache_type_k, settings.cache_type_v))
    cache = int(per_side * element * tokens / _MIB) + 1
    lines.append(
        f"KV cache: {cache} MiB = {file.block_count} layers x {heads} KV heads x"
        f" {file.embedding_length // file.head_count} x {element:.3g} bytes x {tokens} tokens"
    )
    return cache


def _buffers(settings: LlamaCppSettings, file: InspectReply | None) -> int:
    """Activations of one physical batch, about eight rows of the embedding in f32 each, at least 32 MiB."""
    width = (file.embedding_length if file is not None else None) or 4096
    return max(32, int((settings.ubatch_size or 512) * width * 4 * 8 / _MIB))
