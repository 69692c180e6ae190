"""llama.cpp: settings to llama-server's argv, refusals, estimates, gpu counts."""

from typing import Any

import pytest
from cortex_api.engines import ENGINES, ModelSpec, Slot, check, parse_settings
from cortex_llamacpp.arguments import fill
from cortex_llamacpp.wheel import load_wheel
from cortex_shared.contracts.base import content_hash
from cortex_shared.contracts.rpc import InspectReply
from cortex_shared.errors import InvalidInput

ENGINE = ENGINES["llamacpp"]


def spec(settings: dict[str, Any] | None = None, **changes: Any) -> ModelSpec:
    document: dict[str, Any] = {"local_path": "a.gguf"} | (settings or {})
    values: dict[str, Any] = {"id": 7, "name": "a", "served_model_name": "a", "task": "chat"} | changes
    return ModelSpec(engine_type="llamacpp", settings=parse_settings("llamacpp", document), **values)


def argv(settings: dict[str, Any] | None = None, slot: Slot | None = None, **changes: Any) -> str:
    return " ".join(ENGINE.plan(spec(settings, **changes), slot or Slot(cpus=4)).argv)


def refused(settings: dict[str, Any], **changes: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        check(spec(settings, **changes))
    assert caught.value.remedy
    return caught.value


def test_the_plan_of_a_plain_model() -> None:
    plan = ENGINE.plan(spec(), Slot(cpus=2))
    assert " ".join(plan.argv) == (
        "--model {model} --alias a --host {host} --port {port} --metrics --slots --ctx-size 16384"
        " --parallel 4 --threads 1 --gpu-layers 0"
    )
    assert plan.program == "llama-server"
    assert plan.secrets == {"LLAMA_API_KEY": "engine_key"}
    assert plan.container_name == "llamacpp-model-7"
    assert plan.files[0].model_dump(include={"name", "path", "format"}) == {
        "name": "model",
        "path": "a.gguf",
        "format": "gguf",
    }
    assert content_hash(plan) == content_hash(ENGINE.plan(spec(), Slot(cpus=2)))


def test_the_second_replica_on_a_host_has_a_number() -> None:
    assert ENGINE.plan(spec(), Slot(ordinal=1)).container_name == "llamacpp-model-7-2"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"context_size": 100, "parallel_slots": 3}, "--ctx-size 300 --parallel 3"),
        ({"context_size": 0}, "--ctx-size 0 --parallel 4 --kv-unified"),
        ({"mlock": True}, "--load-mode mmap+mlock"),
        ({"mlock": True, "no_mmap": True}, "--load-mode mlock"),
        ({"no_mmap": True}, "--load-mode none"),
        ({"flash_attention": True}, "--flash-attn on"),
        ({"flash_attention": False}, "--flash-attn off"),
        ({"flash_attention": "auto"}, "--flash-attn auto"),
        ({"threads": 3}, "--threads 3"),
        ({"cont_batching": False}, "--no-cont-batching"),
        ({"rope_freq_base": 1e6}, "--rope-freq-base 1000000"),
        ({"cache_type_k": "q8_0"}, "--cache-type-k q8_0"),
        ({"numa_policy": "isolate"}, "--numa isolate"),
        ({"lora": [{"path": "l.gguf", "scale": 0.5}]}, "--lora-scaled {lora0}:0.5"),
        ({"draft_model_path": "d.gguf"}, "--spec-draft-model {draft}"),
        ({"extra_args": ["--temp", "0"]}, "--temp 0"),
        ({"chat_template": "{{ x }}"}, "--chat-template {{{{ x }}}}"),
    ],
)
def test_settings_become_flags(settings: dict[str, Any], expected: str) -> None:
    assert expected in argv(settings)


def test_gpus_get_their_flags() -> None:
    line = argv({"tensor_split": "3,1", "ngl": "all"}, Slot(gpus=("a", "b")))
    assert "--gpu-layers all" in line
    assert "--tensor-split 3,1" in line


def test_embedding_reads_a_whole_context_in_one_batch() -> None:
    line = argv({"context_size": 2000, "pooling": "mean"}, task="embedding")
    assert "--embeddings --batch-size 2000 --ubatch-size 2000" in line
    assert "--pooling mean" in line
    assert "--reranking" in argv(task="rerank")


def test_downloads_name_the_repository_and_the_token() -> None:
    plan = ENGINE.plan(
        spec({"local_path": None, "repo_id": "o/r", "filename": "*Q4_K_M.gguf"}, has_hf_token=True), Slot()
    )
    assert plan.files[0].repo_id == "o/r"
    assert plan.files[0].filename == "*Q4_K_M.gguf"
    assert plan.secrets["HF_TOKEN"] == "hf_token"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"local_path": None}, "local_path"),
        ({"repo_id": "o/r", "filename": "f"}, "local_path"),
        ({"local_path": None, "repo_id": "o/r"}, "filename"),
        ({"filename": "f"}, "filename"),
        ({"tensor_split": [0, 0]}, "tensor_split"),
        ({"tensor_split": [1, 1], "ngl": 0}, "tensor_split"),
        ({"tensor_split": [1, 1], "split_mode": "none"}, "tensor_split"),
        ({"main_gpu": 1}, "main_gpu"),
        ({"cache_type_v": "q4_0", "flash_attention": False}, "cache_type_v"),
        ({"draft_tokens_max": 3}, "draft_tokens_max"),
        ({"ubatch_size": 4096}, "ubatch_size"),
        ({"pooling": "mean"}, "pooling"),
        ({"env": {"LD_PRELOAD": "x"}}, "env"),
        ({"env": {"LLAMA_ARG_PORT": "1"}}, "env"),
        ({"env": {"LLAMA_API_KEY": "x"}}, "env"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], field: str) -> None:
    assert refused(settings).field == field


def test_offline_models_need_their_file() -> None:
    error = refused({"local_path": None, "repo_id": "o/r", "filename": "f"}, mode="offline")
    assert error.code == "settings.offline"
    assert ENGINE.plan(spec(mode="offline"), Slot()).env["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    "extra",
    [
        "--host 0.0.0.0", "--port=1", "--api-key x", "--api-key-file x", "-c 100", "--ctx_size 100", "-ngl 3",
        "--mlock", "--alias b", "--metrics", "--tools all", "--hf-token x", "--path /", "value", "--version",
        "-fa on", "--no-cont-batching",
    ],
)  # fmt: skip
def test_extra_arguments_that_are_cortexs_are_refused(extra: str) -> None:
    error = refused({"extra_args": extra.split(" ")})
    assert error.field == "extra_args.0"


def test_negative_values_of_extra_arguments_are_no_flags() -> None:
    assert "--temp -1 --seed -5" in argv({"extra_args": ["--temp", "-1", "--seed", "-5"]})


@pytest.mark.parametrize(
    ("document", "field", "says"),
    [
        ({"nonsense": 1}, "nonsense", "no setting"),
        ({"tp_size": 2}, "tp_size", "no setting"),
        ({"context_size": "many"}, "context_size", "integer"),
        ({"ngl": -1}, "ngl", "greater"),
        ({"tensor_split": "3,x"}, "tensor_split", "number"),
        ({"threads": 0}, "threads", "greater"),
    ],
)
def test_documents_that_are_wrong_name_the_field(document: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_settings("llamacpp", document)
    assert (caught.value.field or "").startswith(field)
    assert says in caught.value.message


def test_a_setting_of_another_engine_says_so() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_settings("llamacpp", {"tp_size": 2})
    assert "vllm" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("settings", "node_gpus", "counts"),
    [
        ({}, 0, (0,)),
        ({}, 2, (1, 2, 0)),
        ({"ngl": 0}, 2, (0,)),
        ({"ngl": 10}, 0, ()),
        ({"ngl": "all"}, 1, (1,)),
        ({"tensor_split": [1, 1]}, 1, ()),
        ({"tensor_split": [1, 1]}, 4, (2,)),
        ({"split_mode": "none"}, 4, (1, 0)),
    ],
)
def test_how_many_gpus(settings: dict[str, Any], node_gpus: int, counts: tuple[int, ...]) -> None:
    assert ENGINE.gpu_counts(spec(settings), node_gpus) == counts


FILE = InspectReply(
    path="a.gguf",
    size_bytes=4 * 2**30,
    block_count=32,
    embedding_length=4096,
    head_count=32,
    head_count_kv=8,
    context_length=8192,
)


def test_the_estimate_follows_the_file() -> None:
    estimate = ENGINE.estimate(spec({"context_size": 8192, "parallel_slots": 1}), FILE, 0)
    # 2 x 32 layers x 8 heads x 128 x 2 bytes x 8192 tokens = 1 GiB.
    assert 4096 + 1024 < estimate.host_mib < 4096 + 1024 + 300
    assert any("32 layers x 8 KV heads x 128" in line for line in estimate.explanation)
    halved = ENGINE.estimate(
        spec({"context_size": 8192, "parallel_slots": 1, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
        FILE,
        0,
    )
    assert estimate.host_mib - halved.host_mib == pytest.approx(1024 * 15 / 32, abs=3)


def test_the_estimate_on_gpus_is_per_gpu() -> None:
    one = ENGINE.estimate(spec(), FILE, 1)
    two = ENGINE.estimate(spec(), FILE, 2)
    uneven = ENGINE.estimate(spec({"tensor_split": [3, 1]}), FILE, 2)
    assert one.gpu_mib > uneven.gpu_mib > two.gpu_mib > 4096 / 2
    assert one.host_mib < 512
    some = ENGINE.estimate(spec({"ngl": 8}), FILE, 1)
    assert some.gpu_mib < one.gpu_mib / 2
    assert some.host_mib > 3000


def test_an_unread_file_is_assumed_and_said() -> None:
    assert "assumed" in ENGINE.estimate(spec(), None, 0).explanation[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "context_size": 0,
            "batch_size": 1024,
            "ubatch_size": 256,
            "threads": 1,
            "threads_batch": 2,
            "rope_freq_base": 10000.0,
            "rope_freq_scale": 0.5,
            "flash_attention": True,
            "mlock": True,
            "no_mmap": True,
            "numa_policy": "distribute",
            "split_mode": "layer",
            "cache_type_k": "q8_0",
            "cache_type_v": "q8_0",
            "cont_batching": True,
            "cache_reuse": 256,
            "cache_ram_mib": 0,
            "chat_template": "chatml",
            "reasoning_format": "none",
            "mmproj": "m.gguf",
            "lora": [{"path": "l.gguf"}],
            "draft_model_path": "d.gguf",
            "draft_tokens_max": 4,
            "tensor_split": [3, 1],
            "ngl": "all",
            "main_gpu": 1,
        },
    ],
)
@pytest.mark.parametrize("task", ["chat", "embedding", "rerank"])
def test_our_own_server_takes_every_plan(settings: dict[str, Any], task: str) -> None:
    wheel = load_wheel()
    model = spec(settings, task=task)
    filled = [
        argument.replace("{", "").replace("}", "").replace("host", "127.0.0.1")
        if argument == "{host}"
        else argument.replace("{port}", "20000").replace("{", "").replace("}", "")
        for argument in ENGINE.plan(model, Slot(gpus=("a", "b"))).argv
    ]
    params = wheel.CommonParams()
    fill(params, filled, wheel)
    assert params.endpoint_metrics
