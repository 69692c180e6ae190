"""Every flag of llama-server lands on the right parameter of the wheel, or is refused in plain words."""

import sys
from pathlib import Path
from typing import Any

import pytest
from cortex_llamacpp.arguments import BadArgument, fill
from cortex_llamacpp.flags import FLAGS, Choice, Number, Special, Switch, Text
from cortex_llamacpp.refused import REFUSED
from cortex_llamacpp.server import main
from cortex_llamacpp.wheel import load_wheel

WHEEL: Any = load_wheel()
DRAFT_SIMPLE = WHEEL.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
NGRAM_MOD = WHEEL.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_MOD


def parse(*argv: str) -> Any:
    params = WHEEL.CommonParams()
    fill(params, ["--model", "m.gguf", *argv], WHEEL)
    return params


def value_at(params: Any, target: str) -> Any:
    for part in target.split("."):
        params = getattr(params, part)
    return params


def example(rule: Number | Text | Choice) -> tuple[str, Any]:
    """A value to write, and what must be stored for it."""
    match rule:
        case Number(minimum, maximum, real, times):
            number = 0.5 if real else int(max(minimum, min(maximum, 7)))
            return str(number), number * times
        case Text(many):
            return "one", ["one"] if many else "one"
        case Choice(enumeration, members):
            word, member = list(members.items())[-1]
            return word, getattr(getattr(WHEEL, enumeration), member)


@pytest.mark.parametrize("name", sorted(name for name, flag in FLAGS.items() if flag.targets))
def test_each_plain_flag_sets_its_parameter(name: str) -> None:
    flag = FLAGS[name]
    rule = flag.value
    assert not isinstance(rule, Special)
    if isinstance(rule, Switch):
        written, expected = [name], rule.value
    else:
        # A device has to exist; "none" always does.
        text, expected = ("none", "none") if flag.targets == ("mmproj_device",) else example(rule)
        written = [name, text]
    params = parse(*written)
    for target in flag.targets:
        if target == "model.path":
            assert params.model.path == "one"
            continue
        stored = value_at(params, target)
        assert stored == ({"one"} if isinstance(stored, set) else expected)


@pytest.mark.parametrize(
    ("argv", "target", "expected"),
    [
        (["-ngl", "all"], "n_gpu_layers", -2),
        (["--gpu-layers", "auto"], "n_gpu_layers", -1),
        (["--n-gpu-layers", "33"], "n_gpu_layers", 33),
        (["-t", "3"], "cpuparams.n_threads", 3),
        (["-t", "3"], "cpuparams_batch.n_threads", 3),
        (["-t", "3", "-tb", "5"], "cpuparams_batch.n_threads", 5),
        (["-t", "3"], "speculative.draft.cpuparams.n_threads", 3),
        (["-c", "4096"], "n_ctx", 4096),
        (["-c", "0"], "fit_params_min_ctx", -1),
        ([], "n_parallel", -1),
        (["-np", "6"], "n_parallel", 6),
        (["--rope-scale", "4"], "rope_freq_scale", 0.25),
        (["--fit", "off"], "fit_params", False),
        (["-md", "d.gguf"], "speculative.draft.mparams.path", "d.gguf"),
        (["-md", "d.gguf", "-t", "1"], "speculative.types", [DRAFT_SIMPLE]),
        (["-md", "d.gguf", "--spec-type", "ngram-mod"], "speculative.types", [NGRAM_MOD]),
        (["-ngld", "all"], "speculative.draft.n_gpu_layers", -2),
        (["--rerank"], "embedding", True),
        (["--sleep-idle-seconds", "60"], "sleep_idle_seconds", 60),
        (
            ["--chat-template-kwargs", '{"a": true, "b": "c"}'],
            "default_template_kwargs",
            {"a": "true", "b": '"c"'},
        ),
        (["--reasoning", "off"], "enable_reasoning", 0),
        (["-s", "-1"], "sampling.seed", 2**32 - 1),
        (["--seed", "42"], "sampling.seed", 42),
        (["--samplers", "top_k;temperature"], "sampling.samplers", "top_k;temperature"),
        (["--api-key", "a,b"], "api_keys", ["a", "b"]),
        (["--cors-origins", "https://x"], "cors_origins_explicit", True),
        (["-v"], "verbosity", 2**31 - 1),
        (["--no-jinja", "--jinja"], "use_jinja", True),
        (["--jinja", "--no-jinja"], "use_jinja", False),
        (["--ctx_size", "99"], "n_ctx", 99),
        (["-lv", "5", "-v", "-lv", "2"], "verbosity", 2),
    ],
)
def test_flags_that_need_code(argv: list[str], target: str, expected: object) -> None:
    assert value_at(parse(*argv), target) == expected


def test_lists_are_padded_to_the_wheels_devices() -> None:
    assert parse("-ts", "3,1/2").tensor_split[:4] == [3.0, 1.0, 2.0, 0.0]
    mebibyte = 1024 * 1024
    assert set(parse("-fitt", "256").fit_params_target) == {256 * mebibyte}
    assert parse("-fitt", "1,2").fit_params_target[:3] == [mebibyte, 2 * mebibyte, 1024 * mebibyte]


def test_adapters_speculation_and_pooling() -> None:
    adapters = parse("--lora-scaled", "a.gguf:0.5,b.gguf:2").lora_adapters
    assert [(adapter.path, adapter.scale) for adapter in adapters] == [("a.gguf", 0.5), ("b.gguf", 2.0)]
    assert [adapter.path for adapter in parse("--lora", "a,b").lora_adapters] == ["a", "b"]
    types = parse("--spec-type", "draft-simple,ngram-mod").speculative.types
    assert types == [DRAFT_SIMPLE, NGRAM_MOD]
    assert parse("--reranking").pooling_type == WHEEL.llama_pooling_type.LLAMA_POOLING_TYPE_RANK


def test_files_are_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# people\none\n\n two \n")
    assert parse("--api-key-file", str(keys)).api_keys == ["one", "two"]
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    assert parse("--chat-template-file", str(template)).chat_template == "{{ messages }}"
    assert parse("--slot-save-path", str(tmp_path)).slot_save_path == f"{tmp_path}/"


def test_a_sampling_default_is_marked_as_the_users() -> None:
    bits = WHEEL.common_params_sampling_config
    marked = parse("--temp", "0", "--top-k", "5").sampling.user_sampling_config
    assert marked == int(bits.COMMON_PARAMS_SAMPLING_CONFIG_TEMP) | int(
        bits.COMMON_PARAMS_SAMPLING_CONFIG_TOP_K
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--mlock"], ["--mlock", "--load-mode mlock"]),
        (["--no-mmap"], ["--no-mmap", "--load-mode none"]),
        (["--draft-max", "3"], ["--draft-max", "--spec-draft-n-max"]),
        (["--n-cpu-moe", "3"], ["--n-cpu-moe", "--override-tensor"]),
        (["-hf", "a/b"], ["-hf", "--model"]),
        (["--frobnicate"], ["--frobnicate", "unknown"]),
        (["--port=80"], ["--port", "argument of its own"]),
        (["stray"], ["no flag"]),
        (["--port"], ["--port", "missing"]),
        (["--port", "x"], ["--port", "whole number"]),
        (["--port", "65536"], ["--port", "0 to 65535"]),
        (["-c", "99999999999"], ["-c", "out of range"]),
        (["--temp", "nan"], ["--temp", "out of range"]),
        (["-np", "0"], ["-np", "1 or more"]),
        (["-fa", "yes"], ["-fa", "auto, on, off"]),
        (["--load-mode", "fast"], ["--load-mode", "mmap+mlock"]),
        (["-ngl", "-7"], ["-ngl", "auto or all"]),
        (["-ts", "1,,2"], ["-ts", "empty item"]),
        (["-ts", ",".join("1" * 200)], ["-ts", "at most"]),
        (["--lora-scaled", "a.gguf"], ["--lora-scaled", "FILE:SCALE"]),
        (["--chat-template-kwargs", "[1]"], ["--chat-template-kwargs", "JSON object"]),
        (["--chat-template-file", "/nowhere/x"], ["--chat-template-file", "cannot read"]),
        (["--spec-type", "magic"], ["--spec-type", "draft-simple"]),
        (["--samplers", "top_k;nope"], ["--samplers", "'nope'"]),
        (["-ot", "ffn=GPU9"], ["-ot", "PATTERN=CPU"]),
        (["--slot-save-path", "/nowhere"], ["--slot-save-path", "folder"]),
        (["--mmproj-device", "GPU9"], ["--mmproj-device", "GPU9"]),
    ],
)
def test_refusals_name_flag_reason_and_remedy(argv: list[str], words: list[str]) -> None:
    with pytest.raises(BadArgument) as caught:
        parse(*argv)
    text = str(caught.value)
    assert "\n" not in text
    assert ";" in text or "argument" in text
    for word in words:
        assert word in text


def test_no_flag_is_both_taken_and_refused() -> None:
    assert not set(FLAGS) & set(REFUSED)


def test_an_api_key_is_never_in_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "m.gguf", "--api-key", "s3cret", "--api-key=s3cret"]) == 1
    assert main(["--model", "m.gguf", "--api-key", " , "]) == 1
    assert "s3cret" not in capsys.readouterr().err


def test_an_empty_key_file_does_not_open_the_server(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(BadArgument, match="no key"):
        parse("--api-key-file", str(tmp_path / "keys"))


def test_without_a_model() -> None:
    with pytest.raises(BadArgument, match="--model"):
        fill(WHEEL.CommonParams(), ["--port", "80"], WHEEL)


def test_gpu_flags_warn_on_a_build_without_gpus() -> None:
    warnings = fill(WHEEL.CommonParams(), ["-m", "m", "-ngl", "all", "-t", "1", "-t", "2"], WHEEL)
    assert len(warnings) == 2
    assert "-t" in warnings[0]
    assert "no GPU support" in warnings[1]


def test_main_answers_version_help_and_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--version"]) == 0
    assert "xllamacpp" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "--tensor-split" in capsys.readouterr().out
    for argv, word in [
        (["-m", str(tmp_path)], "folder"),
        (["-m", str(tmp_path / "none.gguf")], "no file"),
        (["--mlock"], "--load-mode mlock"),
    ]:
        assert main(argv) == 1
        error = capsys.readouterr().err
        assert word in error
        assert error.count("\n") == 1


def test_a_wheel_that_does_not_load_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert main(["-m", "m.gguf"]) == 1
    error = capsys.readouterr().err
    assert "libgomp1" in error
    assert error.count("\n") == 1
