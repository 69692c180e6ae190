"""What an engine's last lines and exit status are taken to mean."""

from typing import Any

import pytest
from cortex_api.engines import explain_exit
from cortex_shared.clock import utc_now
from cortex_shared.contracts.observed import Exit


def code(engine: str, *lines: str, **exit_: Any) -> str | None:
    reason = explain_exit(engine, Exit(at=utc_now(), last_lines=list(lines), **exit_))
    assert reason is None or (reason.message and reason.remedy)
    return None if reason is None else reason.code


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gguf_init_from_file_impl: invalid magic characters: 'XXXX', expected 'GGUF'", "bad_file"),
        (
            "gguf_init: tensor 'output.weight' data is not within the file bounds, model is corrupted",
            "bad_file",
        ),
        ("llama_model_load: error loading model: unknown model architecture: 'foo'", "unknown_architecture"),
        ("error: invalid argument: --mlock", "unknown_argument"),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", "out_of_memory"),
        ("common_init_from_params: failed to create context with model 'x'", "context_too_large"),
        ("CUDA error: an unsupported value", "gpu_fault"),
        ("couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 80", "port_in_use"),
        (
            "error loading model: error loading model vocabulary: cannot find tokenizer merges",
            "tokenizer_missing",
        ),
        ("main: exiting due to model loading error: failed to load model", "bad_file"),
    ],
)
def test_llamacpp(line: str, expected: str) -> None:
    assert code("llamacpp", "build: 11669", line, "main: exiting", status=1) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ValueError: ... please pass the argument `trust_remote_code=True`", "remote_code_needed"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "out_of_memory"),
        ("ValueError: No available memory for the cache blocks.", "context_too_large"),
        ("vllm: error: unrecognized arguments: --swap-space 4", "unknown_argument"),
        ("ModuleNotFoundError: No module named 'flash_attn'", "missing_package"),
        ("OSError: [Errno 98] Address already in use", "port_in_use"),
        ("OSError: m does not appear to have a file named config.json", "no_file"),
        ("huggingface_hub.errors.GatedRepoError: 403 Client Error.", "access_refused"),
    ],
)
def test_vllm(line: str, expected: str) -> None:
    assert code("vllm", "INFO starting", line, status=1) == expected


def test_what_the_exit_itself_says() -> None:
    assert code("llamacpp", "fine", oom_killed=True, status=137) == "out_of_memory"
    assert code("llamacpp", signal=9) == "out_of_memory"
    assert code("vllm", signal=4) == "illegal_instruction"
    assert code("vllm", signal=11) == "crashed"
    assert code("vllm", "all is well", status=0) is None
    assert code("external", status=1) is None


def test_the_message_names_what_was_found() -> None:
    reason = explain_exit("vllm", Exit(at=utc_now(), last_lines=["No module named 'flash_attn'"], status=1))
    assert reason is not None
    assert "flash_attn" in reason.message
