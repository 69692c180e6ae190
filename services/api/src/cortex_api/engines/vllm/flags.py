"""vLLM's flags: which setting each is, and which a model may not bring itself."""

from cortex_api.engines.arguments import flag, owners

# One-to-one settings, in the order of argv.
FLAGS = (
    flag("tokenizer", "--tokenizer"),
    flag("trust_remote_code", "--trust-remote-code", off=None),
    flag("dtype", "--dtype"),
    flag("quantization", "--quantization -q"),
    flag("gpu_memory_utilization", "--gpu-memory-utilization --device-memory-utilization"),
    flag("kv_cache_memory_bytes", "--kv-cache-memory-bytes"),
    flag("kv_cache_dtype", "--kv-cache-dtype"),
    flag("block_size", "--block-size"),
    flag("max_model_len", "--max-model-len"),
    flag("max_num_seqs", "--max-num-seqs"),
    flag("max_num_batched_tokens", "--max-num-batched-tokens"),
    flag("enable_prefix_caching", "--enable-prefix-caching", off="--no-enable-prefix-caching"),
    flag("enable_chunked_prefill", "--enable-chunked-prefill", off="--no-enable-chunked-prefill"),
    flag("enforce_eager", "--enforce-eager", off="--no-enforce-eager"),
    # Was --cuda-graph-sizes until vLLM renamed it.
    flag("cuda_graph_sizes", "--cudagraph-capture-sizes --cuda-graph-sizes", spread=True),
    flag("seed", "--seed"),
    flag("chat_template", "--chat-template"),
    flag("enable_auto_tool_choice", "--enable-auto-tool-choice", off="--no-enable-auto-tool-choice"),
    flag("tool_call_parser", "--tool-call-parser"),
    flag("reasoning_parser", "--reasoning-parser"),
)

# Flags that code sets, by the setting that decides them.
OWNED = owners(
    FLAGS,
    {
        "local_path": "--model",
        "revision": "--revision",
        "served_model_name": "--served-model-name",
        "tp_size": "--tensor-parallel-size -tp",
        "pipeline_parallel_size": "--pipeline-parallel-size -pp",
        "task": "--runner --convert --task",
        "trust_remote_code": "--no-trust-remote-code",
    },
)

_CALLERS = "who may call the engine is Cortex's to say"
_ROOT = "the gateway expects the API at the root of the node's port"
_ONE_HOST = "a replica runs on one host"

REFUSED = {
    "--host": "the node chooses the address",
    "--port": "the node chooses the port",
    "--uds": "the node chooses the address",
    "--api-key": _CALLERS,
    "--ssl-keyfile": _CALLERS,
    "--ssl-certfile": _CALLERS,
    "--ssl-ca-certs": _CALLERS,
    "--root-path": _ROOT,
    "--grpc": _ROOT,
    "--headless": _ROOT,
    "--config": "it would hide settings from Cortex",
    "--hf-token": "a secret does not belong in arguments; set hf_token of the model",
    "--download-dir": "the node fetches models into its model roots",
    "--disable-log-stats": "Cortex watches the engine by its metrics",
    "--nnodes": _ONE_HOST,
    "-n": _ONE_HOST,
    "--node-rank": _ONE_HOST,
    "-r": _ONE_HOST,
    "--master-addr": _ONE_HOST,
    "--swap-space": "vLLM removed it; use --kv-offloading-size",
    "--device": "vLLM removed it; it takes the GPUs that it is given",
    "--disable-log-requests": "vLLM removed it, and does not log requests unless --enable-log-requests",
    "--guided-decoding-backend": "vLLM removed it; use --structured-outputs-config",
    "--rope-scaling": "vLLM removed it; use --hf-overrides",
    "--rope-theta": "vLLM removed it; use --hf-overrides",
    "--max-seq-len-to-capture": "vLLM removed it; use the setting cuda_graph_sizes",
    "--use-v2-block-manager": "vLLM removed it",
}

# Flags that make vLLM import Python code by name or path: the node's policy on remote code applies.
CODE = frozenset(
    {
        "--tool-parser-plugin",
        "--reasoning-parser-plugin",
        "--io-processor-plugin",
        "--logits-processors",
        "--middleware",
        "--worker-cls",
        "--worker-extension-cls",
        "--scheduler-cls",
        "--model-class-overrides",
    }
)
