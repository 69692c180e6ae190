"""llama-server's flags: which setting each is, and which a model may not bring itself."""

from cortex_api.engines.arguments import flag, owners

# One-to-one settings, in the order of argv.
FLAGS = (
    flag("main_gpu", "--main-gpu -mg"),
    flag("split_mode", "--split-mode -sm"),
    flag("tensor_split", "--tensor-split -ts"),
    flag("cont_batching", "--cont-batching -cb", off="--no-cont-batching"),
    flag("cache_reuse", "--cache-reuse"),
    flag("cache_ram_mib", "--cache-ram -cram"),
    flag("cache_type_k", "--cache-type-k -ctk"),
    flag("cache_type_v", "--cache-type-v -ctv"),
    flag("threads_batch", "--threads-batch -tb"),
    flag("numa_policy", "--numa"),
    flag("rope_freq_base", "--rope-freq-base"),
    flag("rope_freq_scale", "--rope-freq-scale"),
    flag("pooling", "--pooling"),
    flag("chat_template", "--chat-template"),
    flag("reasoning_format", "--reasoning-format"),
    flag("draft_tokens_max", "--spec-draft-n-max"),
)

# Flags that code sets, by the setting that decides them.
OWNED = owners(
    FLAGS,
    {
        "local_path": "-m --model",
        "repo_id": "-mu --model-url -hf -hfr --hf-repo -dr --docker-repo",
        "filename": "-hff --hf-file",
        "served_model_name": "-a --alias",
        "ngl": "-ngl --gpu-layers --n-gpu-layers",
        "context_size": "-c --ctx-size",
        "parallel_slots": "-np --parallel",
        "batch_size": "-b --batch-size",
        "ubatch_size": "-ub --ubatch-size",
        "flash_attention": "-fa --flash-attn",
        "threads": "-t --threads",
        "mlock": "-lm --load-mode --mlock",
        "no_mmap": "--no-mmap --mmap",
        "task": "--embedding --embeddings --rerank --reranking",
        "mmproj": "-mm --mmproj -mmu --mmproj-url",
        "lora": "--lora --lora-scaled",
        "draft_model_path": "-md --model-draft --spec-draft-model --spec-draft-hf -hfd -hfrd --hf-repo-draft",
        "mode": "--offline",
        "cont_batching": "-nocb",
    },
)

_CALLERS = "who may call the engine is Cortex's to say"
_WATCHED = "Cortex watches the engine by it"
_WRITES = "it would write on the node outside Cortex's folders"
_TOOLS = "it would let whoever chats act on the node"

REFUSED = {
    "--host": "the node chooses the address",
    "--port": "the node chooses the port",
    "--reuse-port": "the node chooses the port",
    "--api-key": _CALLERS,
    "--api-key-file": _CALLERS,
    "--ssl-key-file": _CALLERS,
    "--ssl-cert-file": _CALLERS,
    "--api-prefix": "the gateway expects the API at the root",
    "--hf-token": "a secret does not belong in arguments; set hf_token of the model",
    "-hft": "a secret does not belong in arguments; set hf_token of the model",
    "--metrics": _WATCHED,
    "--slots": _WATCHED,
    "--no-slots": _WATCHED,
    "--path": "it would serve files of the node",
    "--media-path": "it would serve files of the node",
    "--log-file": _WRITES,
    "--log-disable": _WATCHED,
    "--log-prompts-dir": _WRITES,
    "--slot-save-path": _WRITES,
    "--rpc": "current builds have no RPC",
    "--tools": _TOOLS,
    "--tools-runtime": _TOOLS,
    "--mcp-servers-config": _TOOLS,
    "--mcp-servers-json": _TOOLS,
    "--ui-mcp-proxy": _TOOLS,
    "--webui-mcp-proxy": _TOOLS,
    "-ag": _TOOLS,
    "--agent": _TOOLS,
    "--models-dir": "a Cortex model is one model",
    "--models-preset": "a Cortex model is one model",
    "--models-max": "a Cortex model is one model",
    "--draft": "llama.cpp removed it; use the setting draft_tokens_max",
    "--draft-max": "llama.cpp removed it; use the setting draft_tokens_max",
    "--draft-min": "llama.cpp removed it; use --spec-draft-n-min",
    "--grp-attn-n": "llama.cpp removed it; use rope_freq_scale",
    "--grp-attn-w": "llama.cpp removed it; use rope_freq_scale",
}
