"""How much memory a vLLM replica needs: a share of each GPU, or weights and KV cache on the host."""

from cortex_shared.contracts.rpc import InspectReply

from cortex_api.engines.base import Estimate, ModelSpec
from cortex_api.engines.vllm.settings import VllmSettings

_MIB = 2**20
_DEFAULT_UTILIZATION = 0.92
# Measured with vLLM 0.32 on CPU: three processes, 1.4 GiB beside weights and KV cache.
_PROCESSES_MIB = 1500
# With CUDA libraries loaded the processes are about twice as large.
_CUDA_PROCESSES_MIB = 3000
_UNKNOWN_WEIGHTS_MIB = 1024
# What a replica on a host without GPUs gets unless its settings say: left alone, vLLM 0.32 takes 92 % of the
# host's memory there, and does not start where so much is not free.
HOST_CACHE_BYTES = 4 * 2**30


def estimate(spec: ModelSpec, file: InspectReply | None, gpus: int) -> Estimate:
    """On GPUs vLLM takes gpu_memory_utilization of each, whatever the model; on the host what it needs."""
    settings = VllmSettings.of(spec)
    lines: list[str] = []
    if file is not None and file.size_bytes is not None:
        weights = -(-file.size_bytes // _MIB)
        lines.append(f"weights: {weights} MiB, the files' size")
    else:
        weights = _UNKNOWN_WEIGHTS_MIB
        lines.append(f"weights: {weights} MiB assumed, no node has read the files yet")
    cache = -(-(settings.kv_cache_memory_bytes or 0) // _MIB)
    if gpus == 0:
        cache = cache or HOST_CACHE_BYTES // _MIB
        lines.append(f"KV cache: {cache} MiB")
        lines.append(f"processes: {_PROCESSES_MIB} MiB")
        return Estimate(host_mib=weights + cache + _PROCESSES_MIB, explanation=tuple(lines))
    per_gpu = -(-weights // gpus)
    if settings.kv_cache_memory_bytes is not None:
        per_gpu += cache + 1024
        lines.append(
            f"on each of {gpus} GPU(s): {per_gpu} MiB = weights, {cache} MiB KV cache, 1024 MiB more"
        )
        return Estimate(host_mib=_CUDA_PROCESSES_MIB, gpu_mib=per_gpu, explanation=tuple(lines))
    ratio = settings.gpu_memory_utilization or _DEFAULT_UTILIZATION
    lines.append(f"on each of {gpus} GPU(s): {ratio:.0%} of its memory, at least {per_gpu} MiB of weights")
    lines.append(f"on the host: {_CUDA_PROCESSES_MIB} MiB")
    return Estimate(host_mib=_CUDA_PROCESSES_MIB, gpu_mib=per_gpu, gpu_ratio=ratio, explanation=tuple(lines))
