"""vLLM: settings to `vllm serve`, refusals, estimates."""

from typing import Any

import pytest
from cortex_api.engines import ENGINES, ModelSpec, Slot, check, parse_settings
from cortex_shared.contracts.rpc import InspectReply
from cortex_shared.errors import InvalidInput

ENGINE = ENGINES["vllm"]


def spec(settings: dict[str, Any] | None = None, *, engine: str = "vllm", **changes: Any) -> ModelSpec:
    document = settings or {}
    if engine == "vllm" and "repo_id" not in document:
        document = {"local_path": "m"} | document
    values: dict[str, Any] = {"id": 7, "name": "a", "served_model_name": "a", "task": "chat"} | changes
    return ModelSpec(engine_type=engine, settings=parse_settings(engine, document), **values)


def argv(settings: dict[str, Any] | None = None, **changes: Any) -> str:
    return " ".join(ENGINE.plan(spec(settings, **changes), Slot()).argv)


def test_the_plan_of_a_plain_model() -> None:
    plan = ENGINE.plan(spec({"repo_id": "o/r"}), Slot(gpus=("g",)))
    assert " ".join(plan.argv) == "serve {model} --host {host} --port {port} --served-model-name a"
    assert plan.program == "vllm"
    assert plan.secrets == {"VLLM_API_KEY": "engine_key"}
    assert plan.container_name == "vllm-model-7"
    assert plan.files[0].repo_id == "o/r"
    assert plan.gpus == ["g"]
    assert not plan.remote_code


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tp_size": 2}, "--tensor-parallel-size 2"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ({"cuda_graph_sizes": [1, 2, 4]}, "--cudagraph-capture-sizes 1 2 4"),
        ({"cuda_graph_sizes": "1,2"}, "--cudagraph-capture-sizes 1 2"),
        ({"enable_prefix_caching": False}, "--no-enable-prefix-caching"),
        ({"enable_chunked_prefill": True}, "--enable-chunked-prefill"),
        ({"enforce_eager": True}, "--enforce-eager"),
        ({"gpu_memory_utilization": 0.5}, "--gpu-memory-utilization 0.5"),
        ({"kv_cache_memory_bytes": 67108864}, "--kv-cache-memory-bytes 67108864"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
        ({"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}, "--tool-call-parser hermes"),
        (
            {"extra_args": ["--hf-overrides", '{"a": {"b": 1}}']},
            '--hf-overrides {{"a": {{"b": 1}}}}',
        ),
    ],
)
def test_settings_become_flags(settings: dict[str, Any], expected: str) -> None:
    assert expected in argv(settings)


def test_without_gpus_it_does_not_take_most_of_the_hosts_memory() -> None:
    assert "--kv-cache-memory-bytes 4294967296" in argv()
    assert "--kv-cache-memory-bytes" not in argv({"gpu_memory_utilization": 0.3})
    assert argv({"kv_cache_memory_bytes": 2**26}).count("--kv-cache-memory-bytes") == 1
    on_gpu = ENGINE.plan(spec(), Slot(gpus=("g",)))
    assert "--kv-cache-memory-bytes" not in on_gpu.argv
    assert "KV cache: 4096 MiB" in ENGINE.estimate(spec(), None, 0).explanation


def test_tasks_choose_the_runner() -> None:
    assert "--runner pooling --convert embed" in argv(task="embedding")
    assert "--runner" not in argv()


def test_swap_space_says_what_to_use_instead() -> None:
    with pytest.raises(InvalidInput) as caught:
        check(spec({"swap_space_gb": 4}))
    assert caught.value.field == "swap_space_gb"
    assert "--kv-offloading-size" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"repo_id": "o/r", "local_path": "m"}, "local_path"),
        ({"revision": "main"}, "revision"),
        ({"kv_cache_memory_bytes": 2**21, "gpu_memory_utilization": 0.5}, "kv_cache_memory_bytes"),
        ({"enforce_eager": True, "cuda_graph_sizes": [1]}, "cuda_graph_sizes"),
        ({"enable_auto_tool_choice": True}, "tool_call_parser"),
        ({"max_num_seqs": 512, "max_num_batched_tokens": 256}, "max_num_batched_tokens"),
        ({"extra_args": ["--port", "1"]}, "extra_args.0"),
        ({"extra_args": ["--max-model-len=5"]}, "extra_args.0"),
        ({"extra_args": ["--disable-log-requests"]}, "extra_args.0"),
        ({"extra_args": ["--seed", "1"]}, "extra_args.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(spec(settings))
    assert caught.value.field == field
    assert caught.value.remedy


def test_code_is_told_to_the_node() -> None:
    assert ENGINE.plan(spec({"trust_remote_code": True}), Slot()).remote_code
    assert ENGINE.plan(spec({"extra_args": ["--middleware", "m.M"]}), Slot()).remote_code
    assert ENGINE.plan(spec({"extra_args": ["--middleware.a=b"]}), Slot()).remote_code
    assert ENGINE.plan(spec({"extra_args": ["--tool_parser_plugin=p.py"]}), Slot()).remote_code


def test_images_are_for_docker() -> None:
    pinned = spec(engine_version="0.32.0")
    assert ENGINE.plan(pinned, Slot()).image is None
    assert ENGINE.plan(pinned, Slot(runtime="docker")).image == "vllm/vllm-openai:v0.32.0"
    own = spec(engine_version="0.32.0", engine_image="r/i:t")
    assert ENGINE.plan(own, Slot(runtime="docker")).image == "r/i:t"


def test_gpus() -> None:
    assert ENGINE.gpu_counts(spec({"tp_size": 2, "pipeline_parallel_size": 2}), 8) == (4,)
    assert ENGINE.gpu_counts(spec({"tp_size": 4}), 2) == ()
    assert ENGINE.gpu_counts(spec(), 0) == (0,)


def test_estimates() -> None:
    folder = InspectReply(path="m", size_bytes=8 * 2**30)
    on_gpu = ENGINE.estimate(spec({"gpu_memory_utilization": 0.5}), folder, 2)
    assert on_gpu.gpu_need_mib(80_000) == 40_000
    assert on_gpu.gpu_need_mib(4_000) == 4096
    fixed = ENGINE.estimate(spec({"kv_cache_memory_bytes": 2**30}), folder, 1)
    assert fixed.gpu_need_mib(1_000_000) == 8192 + 1024 + 1024
    on_host = ENGINE.estimate(spec({"kv_cache_memory_bytes": 2**30}), folder, 0)
    assert on_host.host_mib == 8192 + 1024 + 1500


def test_unknown_engine() -> None:
    with pytest.raises(InvalidInput, match="no engine"):
        parse_settings("sglang", {})


@pytest.mark.parametrize(
    "argument",
    [
        "--api-ke", "--trust-remote", "--trust_remote", "--middlew", "--api-key.a",
        "--worker-c", "-n2", "--tool-parser-plug=x",
    ],
)  # fmt: skip
def test_shortened_and_dotted_flags_pass_no_guard(argument: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(spec({"repo_id": "a/b", "extra_args": [argument, "x"]}))
    assert caught.value.field == "extra_args.0"


def test_flags_in_full_are_taken() -> None:
    extra = ["--structured-outputs-config.backend", "x", "--lora-alpha", "-1"]
    plan = ENGINE.plan(spec({"repo_id": "a/b", "extra_args": extra}), Slot())
    assert plan.argv[-4:] == extra
    assert not plan.remote_code
