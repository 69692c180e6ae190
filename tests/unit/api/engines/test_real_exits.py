"""The last lines of engines that really ended so, as agents report them: each shows its cause and a remedy.

Written by vLLM 0.32 for processors and by cortex-llama-server, given what the file's name says.
"""

from pathlib import Path

import pytest
from cortex_api.engines import explain_exit
from cortex_shared.clock import utc_now
from cortex_shared.contracts.observed import Exit, Reason

EXITS = Path(__file__).with_name("exits")

VLLM = {
    "arch": ("unknown_architecture", "FooForCausalLM"),
    "awq": ("wrong_quantization", "quantized"),
    "badflag": ("unknown_argument", "--swap-space"),
    "badjson": ("bad_file", "badjson/config.json"),
    "fp8": ("engine_error", "RuntimeError: _C::static_scaled_fp8_quant()"),
    "kvsmall": ("context_too_large", "about 384 tokens"),
    "maxlen": ("context_too_large", "100000, but the model was made for 8192"),
    "noconfig": ("no_file", "config.json"),
    "notok": ("tokenizer_missing", "tokenizer"),
    "noweights": ("no_file", "weights are missing"),
    "parser": ("unknown_parser", "tool call parser nonsense"),
    "port": ("port_in_use", "taken"),
    "quant": ("unknown_quantization", "nonsense"),
    "remote": ("remote_code_needed", "Python code"),
    "shape": ("bad_file", "do not fit"),
    "template": ("bad_template", "/nowhere.jinja"),
    "tp": ("bad_parallelism", "tp_size"),
    "truncated": ("bad_file", "truncated"),
    "type": ("unknown_architecture", "type foo"),
}
LLAMACPP = {
    "arch": ("unknown_architecture", "fooba"),
    "badflag": ("unknown_argument", "--nonsense"),
    "ctk": ("bad_argument", "-ctk: 'nonsense' is not a choice"),
    "cuthead": ("bad_file", "truncated"),
    "empty": ("bad_file", "empty"),
    "gone": ("unknown_argument", "--mlock"),
    "lora": ("bad_lora", "/nowhere.gguf"),
    "magic": ("bad_file", "magic"),
    "md": ("bad_draft_model", "truncated.gguf"),
    "missing": ("no_file", "nowhere.gguf"),
    "mmproj": ("bad_mmproj", "/nowhere.gguf"),
    "port": ("port_in_use", "taken"),
    "pre": ("tokenizer_missing", "gpt-9"),
    "template": ("no_file", "/nowhere.jinja"),
    "tensor": ("bad_file", "blk.1.attn_q.weight"),
    "tok": ("tokenizer_missing", "merges"),
    "tok2": ("tokenizer_missing", "tokenizer.ggml.model"),
    "truncated": ("bad_file", "truncated"),
    "version": ("unknown_format", "version 99"),
}


def reason_of(path: Path) -> Reason:
    lines = path.read_text().splitlines()
    reason = explain_exit(path.parent.name, Exit(at=utc_now(), status=1, last_lines=lines))
    assert reason is not None, path
    return reason


@pytest.mark.parametrize(
    ("engine", "name", "code", "words"),
    [
        (engine, name, *expected)
        for engine, table in (("vllm", VLLM), ("llamacpp", LLAMACPP))
        for name, expected in table.items()
    ],
)
def test_a_real_end_is_explained(engine: str, name: str, code: str, words: str) -> None:
    reason = reason_of(EXITS / engine / f"{name}.log")
    assert reason.code == code
    assert words in reason.message
    assert reason.remedy


def test_every_recorded_end_is_tested() -> None:
    assert {path.stem for path in (EXITS / "vllm").iterdir()} == set(VLLM)
    assert {path.stem for path in (EXITS / "llamacpp").iterdir()} == set(LLAMACPP)


def test_a_number_in_the_log_becomes_a_remedy() -> None:
    assert "to 8192" in (reason_of(EXITS / "vllm" / "maxlen.log").remedy or "")
    assert "--load-mode mlock" in (reason_of(EXITS / "llamacpp" / "gone.log").remedy or "")


def test_settings_and_warnings_in_vllms_log_are_no_causes() -> None:
    lines = [
        "(APIServer pid=1) INFO 11-22 14:43:54 [a.py:286] args: {'trust_remote_code': True}",
        "(APIServer pid=1) WARNING 11-22 14:43:54 [x.py:255] errors like `OSError: [Errno 24]`",
    ]
    assert explain_exit("vllm", Exit(at=utc_now(), status=1, last_lines=lines)) is None
