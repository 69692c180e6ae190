"""What vLLM's last words mean."""

import re

from cortex_api.engines.diagnosis import cause

# vLLM tells all its settings, and what might go wrong, in lines of these levels; a cause is in none of them.
NOISE = re.compile(r"\b(?:DEBUG|INFO|WARNING) \d\d-\d\d \d\d:\d\d")

CAUSES = (
    cause(
        r"trust[_-]remote[_-]code",
        "remote_code_needed",
        "the model brings Python code of its own, which vLLM does not run unasked",
        "if you trust it, set trust_remote_code to true and allow remote code on the node",
    ),
    cause(
        r"KV cache is needed, which is larger than.*estimated maximum model length is (?P<tokens>\d+)",
        "context_too_large",
        "the KV cache has no room for one request of full length, only for about {tokens} tokens",
        "lower max_model_len to that, or raise kv_cache_memory_bytes or gpu_memory_utilization",
    ),
    cause(
        r"No available memory for the cache blocks|KV cache is needed, which is larger than|max seq(?:uence)?"
        r"[_ ]len(?:gth)?.*larger than the maximum number of tokens",
        "context_too_large",
        "no room is left for the KV cache of one request of full length",
        "lower max_model_len, raise gpu_memory_utilization, or use more GPUs",
    ),
    cause(
        r"user-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len"
        r" \((?:max_position_embeddings|\w+)=(?P<most>\d+)",
        "context_too_large",
        "max_model_len is {asked}, but the model was made for {most} tokens",
        "lower max_model_len to {most}, or leave it out",
    ),
    cause(
        r"user-specified max_model_len .* is greater than",
        "context_too_large",
        "max_model_len is larger than the model can hold",
        "lower max_model_len to the model's own length",
    ),
    cause(
        r"Available memory on node .*(?:less than desired CPU memory|less than requested memory for kv)",
        "out_of_memory",
        "the host has less free memory than vLLM is to take",
        "lower kv_cache_memory_bytes (or gpu_memory_utilization, which is of the host's memory where there is"
        " no GPU), or stop what else runs on the node",
    ),
    cause(
        r"free memory on device.*less than desired|less than desired GPU memory utilization",
        "gpu_busy",
        "the GPU has less free memory than gpu_memory_utilization asks for",
        "lower gpu_memory_utilization, or stop what else runs on that GPU",
    ),
    cause(
        r"CUDA out of memory|OutOfMemoryError|HIP out of memory|MemoryError|can't allocate memory",
        "out_of_memory",
        "there is not enough memory for the model and its KV cache",
        "use more GPUs (tp_size), a quantized model, or a smaller max_model_len and max_num_seqs",
    ),
    cause(
        r"unrecognized arguments?:? (?P<flag>.+)|error: argument (?P<flag2>\S+):",
        "unknown_argument",
        "vLLM does not know an argument of this model: {flag}",
        "remove it from extra_args, or use another engine version",
    ),
    cause(
        r"Unknown quantization method:? (?P<method>[\w-]+)",
        "unknown_quantization",
        "vLLM does not know the quantization method {method}",
        "leave quantization out, so that the model's own config decides; the log lists the methods",
    ),
    cause(
        r"quantization method .*does not match the quantization method|Cannot find the config file for"
        r" (?P<method>\w+)",
        "wrong_quantization",
        "the model's files are not quantized in the way that quantization says",
        "leave quantization out, so that the model's own config decides",
    ),
    cause(
        r"(?P<method>\w+) quantization is currently not supported|quantization .*not supported (?:on|for|by)",
        "wrong_quantization",
        "this quantization does not run on the node's hardware",
        "use another quantization of the model, or another node",
    ),
    cause(
        r"invalid (?P<what>tool call|reasoning) parser: (?P<parser>\S+)",
        "unknown_parser",
        "vLLM has no {what} parser {parser}",
        "choose another tool_call_parser or reasoning_parser; the log lists them",
    ),
    cause(
        r"chat template string \((?P<file>.+?)\) appears path-like",
        "bad_template",
        "there is no chat template {file} on the node",
        "give the path of a Jinja file on the node, or the template itself, as chat_template",
    ),
    cause(
        r"model type `?(?P<arch>[\w-]+)`? but Transformers does not recognize",
        "unknown_architecture",
        "this version of vLLM does not know models of the type {arch}",
        "use a newer vLLM on the node, or another model",
    ),
    cause(
        r"Model architectures? \[?'?(?P<arch>\w+).*(?:not supported|failed to be inspected)",
        "unknown_architecture",
        "this version of vLLM does not know the architecture {arch}",
        "use a newer vLLM on the node, or another model",
    ),
    cause(
        r"(?:can't|cannot|couldn't) (?:load|instantiate|find).*tokenizer|tokenizer.*(?:not found|missing)",
        "tokenizer_missing",
        "the model's tokenizer cannot be loaded",
        "put the tokenizer's files beside the weights, or set tokenizer",
    ),
    cause(
        r"(?:No module named|ModuleNotFoundError:.*) '?(?P<package>[\w.]+)'?|requires.*pip install"
        r" (?P<package2>\S+)",
        "missing_package",
        "a Python package is missing in the engine's environment: {package}",
        "install it in the vLLM environment of the node, or use an image that has it",
    ),
    cause(
        r"(?:401|403) Client Error|gated repo|access to model .* is restricted",
        "access_refused",
        "Hugging Face refuses access to the repository",
        "set hf_token of an account that has accepted the model's licence",
    ),
    cause(
        r"config file at '?(?P<file>[^']+)'? is not a valid JSON file",
        "bad_file",
        "{file} is no valid JSON",
        "copy or download it again",
    ),
    cause(
        r"start \(\d+\) \+ length \(\d+\) exceeds dimension size|size mismatch|shape mismatch|must match the"
        r" size of tensor|There is no module or parameter named",
        "bad_file",
        "the weights do not fit the model's config.json",
        "take both from the same source; copy or download them again",
    ),
    cause(
        r"(?:safetensors.*(?:header|invalid|incomplete))|SafetensorError|HeaderTooLarge|InvalidHeader",
        "bad_file",
        "a weights file is truncated or damaged",
        "copy or download it again",
    ),
    cause(
        r"does not appear to have a file named|Cannot find any model weights"
        r"|config\.json.*(?:not found|no such)|Invalid repository ID or local directory",
        "no_file",
        "the folder has no model that vLLM knows: config.json or weights are missing",
        "check local_path on the node",
    ),
    cause(
        r"must be divisible by tensor parallel size|total number of attention heads",
        "bad_parallelism",
        "the model's attention heads cannot be dealt out over tp_size GPUs",
        "use a tp_size that divides the number of attention heads",
    ),
    cause(
        r"NCCL (?:error|WARN)|ncclSystemError|ncclUnhandledCudaError",
        "gpu_fault",
        "the GPUs cannot talk to each other (NCCL)",
        "check NVLink and PCIe on the node; in containers check the size of /dev/shm",
    ),
    cause(
        r"CUDA error: (?P<what>.+)",
        "gpu_fault",
        "CUDA failed: {what}",
        "check the driver with nvidia-smi; look at the node's kernel log for Xid messages",
    ),
)

# What the log says itself, where none of the causes is known: the first error is nearest to the cause.
UNKNOWN = cause(
    r"(?:^|[\s.])(?P<what>[A-Z]\w*(?:Error|Exception): .+)",
    "engine_error",
    "vLLM ended with {what}",
    "see its log; search vLLM's issues for these words, or try another engine version",
)
