"""llama-server's flags that this program does not take: removed ones, and those the wheel cannot express."""

__all__ = ["REFUSED"]


def _refuse(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


_DOWNLOADS = "this program loads local files only; download the file first and pass it with --model"
_PER_REQUEST = "the wheel offers no default for it; send it with each request instead"
_NO_SETTING = "the xllamacpp wheel has no parameter for it; leave it out, or run a llama-server binary"
_BY_PATTERN = "the wheel has no parameter for it; use --override-tensor PATTERN=CPU instead"
_UNSAFE = "it lets clients run tools on this host, which Cortex does not offer; leave it out"

REFUSED: dict[str, str] = {
    **_refuse("it has been removed from llama-server; use --load-mode mlock instead", "--mlock"),
    **_refuse("it has been removed from llama-server; use --load-mode none instead", "--no-mmap"),
    **_refuse("it has been removed from llama-server; use --load-mode mmap instead", "--mmap"),
    **_refuse("it has been removed from llama-server; use --load-mode dio instead", "-dio --direct-io"),
    **_refuse(
        "it has been removed from llama-server; use --spec-draft-n-max (or --spec-ngram-mod-n-max) instead",
        "--draft --draft-n --draft-max",
    ),
    **_refuse(
        "it has been removed from llama-server; use --spec-draft-n-min (or --spec-ngram-mod-n-min) instead",
        "--draft-min --draft-n-min",
    ),
    **_refuse(
        "it has been removed from llama-server; use --spec-ngram-mod-n-match instead",
        "--spec-ngram-size-n --spec-ngram-size-m --spec-ngram-min-hits",
    ),
    **_refuse(
        "it has been removed from llama-server; use --rope-scaling and --yarn-* instead",
        "--grp-attn-n --grp-attn-w -gan -gaw",
    ),
    **_refuse("it no longer has any effect in llama.cpp; leave it out", "-dt --defrag-thold"),
    **_refuse("this build has no RPC; leave it out", "--rpc"),
    **_refuse(
        _DOWNLOADS,
        "-mu --model-url -dr --docker-repo -hf -hfr --hf-repo -hff --hf-file -hft --hf-token -mmu "
        "--mmproj-url -hfd -hfrd --hf-repo-draft --spec-draft-hf -cl --cache-list "
        "--embd-gemma-default --fim-qwen-1.5b-default --fim-qwen-3b-default --fim-qwen-7b-default "
        "--fim-qwen-7b-spec --fim-qwen-14b-spec --fim-qwen-30b-default --gpt-oss-20b-default "
        "--gpt-oss-120b-default --vision-gemma-4b-default --vision-gemma-12b-default",
    ),
    **_refuse(
        "one process serves one model here; start one server for each model, with --model",
        "--models-dir --models-preset --models-max --models-autoload --no-models-autoload",
    ),
    **_refuse(
        "the wheel has no parameter for it; choose GPUs with CUDA_VISIBLE_DEVICES instead",
        "-dev --device --list-devices -devd --spec-draft-device --device-draft",
    ),
    **_refuse(_BY_PATTERN, "-cmoe --cpu-moe -ncmoe --n-cpu-moe -ncffn --n-cpu-ffn"),
    **_refuse(
        _PER_REQUEST,
        "--grammar --grammar-file -j --json-schema -jf --json-schema-file -l --logit-bias "
        "--dry-sequence-breaker --top-nsigma --top-n-sigma --reasoning-effort -r --reverse-prompt",
    ),
    **_refuse("the wheel takes names only; use --samplers instead", "--sampler-seq --sampling-seq"),
    **_refuse(
        "this program logs to standard error as llama.cpp does; redirect that instead",
        "--log-disable --log-file --log-jsonl --no-log-jsonl --log-colors --log-prefix --no-log-prefix "
        "--log-timestamps --no-log-timestamps --log-prompts-dir",
    ),
    **_refuse(
        _UNSAFE,
        "--tools --tools-runtime --mcp-servers-config --mcp-servers-json -ag --agent -no-ag --no-agent "
        "--ui-mcp-proxy --webui-mcp-proxy --no-ui-mcp-proxy --no-webui-mcp-proxy --media-path",
    ),
    **_refuse(
        _NO_SETTING,
        "-C --cpu-mask -Cr --cpu-range --cpu-strict --prio -Cb --cpu-mask-batch -Crb "
        "--cpu-range-batch --cpu-strict-batch --prio-batch -e --escape --no-escape --override-kv "
        "--control-vector --control-vector-scaled --control-vector-layer-range --spm-infill "
        "--reasoning-preserve --no-reasoning-preserve --ui-config --webui-config --ui-config-file "
        "--webui-config-file --completion-bash -bs --backend-sampling --spec-draft-cpu-mask -Cd "
        "--cpu-mask-draft --spec-draft-cpu-range -Crd --cpu-range-draft --spec-draft-cpu-strict "
        "--cpu-strict-draft --spec-draft-prio --prio-draft --spec-draft-poll --poll-draft "
        "--spec-draft-cpu-mask-batch -Cbd --cpu-mask-batch-draft --spec-draft-cpu-strict-batch "
        "--cpu-strict-batch-draft --spec-draft-prio-batch --prio-batch-draft --spec-draft-poll-batch "
        "--poll-batch-draft --spec-draft-override-tensor -otd --override-tensor-draft "
        "--spec-draft-cpu-moe -cmoed --cpu-moe-draft --spec-draft-n-cpu-moe --spec-draft-ncmoe "
        "-ncmoed --n-cpu-moe-draft --spec-draft-n-ubatch --spec-draft-sampling --spec-default "
        "--spec-synth-len --spec-synth-rates",
    ),
}
"""Flags that llama-server has or had: why this program does not take them, and what to do instead."""
