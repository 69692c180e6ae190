"""The real server from the wheel: what it answers, how it starts, stops and refuses."""

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cortex_llamacpp.tiny import STORY, write_tiny_model

from tests.integration.llamacpp.conftest import Engine, Start, free_port

MESSAGES = [{"role": "user", "content": "Tell me a story, please"}]


def post(engine: Engine, path: str, body: dict[str, object], key: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{engine.url}{path}", json=body, headers=headers, timeout=60)


def answer(engine: Engine, **settings: object) -> Any:
    response = post(engine, "/v1/chat/completions", {"messages": MESSAGES, "temperature": 0, **settings})
    assert response.status_code == 200, response.text
    return response.json()


def events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def test_chat_tells_the_story_and_stops(engine: Engine) -> None:
    document = answer(engine)
    choice = document["choices"][0]
    assert choice["message"]["content"] == STORY
    assert choice["finish_reason"] == "stop"
    assert document["model"] == "tiny"
    assert document["usage"]["completion_tokens"] == len(STORY.split()) + 1


def test_streaming_gives_a_word_an_event_and_done(engine: Engine) -> None:
    body = {"messages": MESSAGES, "temperature": 0, "stream": True, "max_tokens": 5}
    with httpx.stream("POST", f"{engine.url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1]]
    words = [choice["delta"].get("content") for choice in choices]
    assert [word for word in words if word] == ["Once", " upon", " one", " windy", " evening"]
    assert choices[-1]["finish_reason"] == "length"


def test_ignore_eos_goes_on_telling(engine: Engine) -> None:
    choice = answer(engine, ignore_eos=True, max_tokens=4000)["choices"][0]
    assert choice["finish_reason"] == "length"
    content = choice["message"]["content"]
    assert content.startswith(STORY * (4000 // len(STORY.split())))


def test_completions_and_tokens(engine: Engine) -> None:
    body: dict[str, object] = {"prompt": "x", "temperature": 0, "max_tokens": 3}
    assert post(engine, "/v1/completions", body).json()["choices"][0]["text"] == "Once upon one"
    tokens = post(engine, "/tokenize", {"content": STORY}).json()["tokens"]
    assert len(tokens) == len(STORY.split())
    text = "Zürich, 2 < 3 → 6\n"
    tokens = post(engine, "/tokenize", {"content": text}).json()["tokens"]
    assert post(engine, "/detokenize", {"tokens": tokens}).json()["content"] == text


def test_what_the_server_says_about_itself(engine: Engine) -> None:
    def get(path: str) -> httpx.Response:
        response = httpx.get(f"{engine.url}{path}")
        assert response.status_code == 200
        return response

    assert get("/health").json() == {"status": "ok"}
    assert [model["id"] for model in get("/v1/models").json()["data"]] == ["tiny"]
    assert len(get("/slots").json()) == 2
    props = get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 8192
    assert "<|im_start|>" in props["chat_template"]
    metrics = get("/metrics").text
    for name in ("requests_processing", "requests_deferred", "tokens_predicted_total", "prompt_tokens_total"):
        assert f"\nllamacpp:{name} " in metrics


def test_markers_in_the_log(engine: Engine) -> None:
    markers = ("loading model", "model loaded", f"listening on {engine.url}")
    positions = [engine.log.find(marker) for marker in markers]
    assert -1 not in positions, engine.log
    assert positions == sorted(positions)


def test_a_split_model(models: Path, start: Start) -> None:
    engine = start(models / "split-00001-of-00003.gguf")
    engine.wait_healthy()
    assert answer(engine)["choices"][0]["message"]["content"] == STORY


def test_embeddings(models: Path, start: Start) -> None:
    engine = start(models / "embed.gguf", "--embeddings")
    engine.wait_healthy()
    texts = ["the frozen lake", "the frozen lake", "hot tea"]
    response = post(engine, "/v1/embeddings", {"input": texts, "model": "tiny"})
    vectors: list[list[float]] = [entry["embedding"] for entry in response.json()["data"]]
    assert [len(vector) for vector in vectors] == [256] * 3
    assert math.sqrt(sum(value * value for value in vectors[0])) == pytest.approx(1, abs=1e-3)
    same, other = (sum(a * b for a, b in zip(vectors[0], vectors[i], strict=True)) for i in (1, 2))
    assert same == pytest.approx(1, abs=1e-3)
    assert other < 0.9


def test_without_the_systems_openmp(models: Path, start: Start, tmp_path: Path) -> None:
    # Lent before the server looks for it, so that it is used also where the system has one.
    (tmp_path / "sitecustomize.py").write_text("from cortex_llamacpp import openmp\nassert openmp.lend()\n")
    engine = start(models / "causal.gguf", "-t", "2", environment={"PYTHONPATH": str(tmp_path)})
    engine.wait_healthy()
    mapped = Path(f"/proc/{engine.process.pid}/maps").read_text()
    assert "libomp.so" in mapped
    assert "libgomp.so" not in mapped
    assert answer(engine)["choices"][0]["message"]["content"] == STORY


def test_the_api_key_comes_from_the_environment(models: Path, start: Start) -> None:
    engine = start(models / "causal.gguf", environment={"LLAMA_API_KEY": "s3cret", "LLAMA_ARG_PORT": "1"})
    engine.wait_healthy()
    body: dict[str, object] = {"messages": MESSAGES, "max_tokens": 1}
    assert post(engine, "/v1/chat/completions", body).status_code == 401
    assert post(engine, "/v1/chat/completions", body, "wrong").status_code == 401
    assert post(engine, "/v1/chat/completions", body, "s3cret").status_code == 200
    assert httpx.get(f"{engine.url}/v1/models").status_code == 401
    assert "s3cret" not in engine.log
    assert "LLAMA_ARG_PORT" in engine.log
    assert b"s3cret" not in Path(f"/proc/{engine.process.pid}/cmdline").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_even_while_streaming(models: Path, start: Start, number: int) -> None:
    engine = start(models / "causal.gguf")
    engine.wait_healthy()
    body = {"messages": MESSAGES, "temperature": 0, "stream": True, "ignore_eos": True, "max_tokens": 8000}
    with httpx.stream("POST", f"{engine.url}/v1/chat/completions", json=body, timeout=60) as response:
        seen = events(response)
        next(seen)
        started = time.monotonic()
        engine.process.send_signal(number)
        with pytest.raises(httpx.TransportError):
            list(seen)
    assert engine.wait_exit() == 0
    assert time.monotonic() - started < 5
    assert f"{signal.Signals(number).name}: stopping" in engine.log


def test_a_signal_ends_it_while_a_long_prompt_is_read(start: Start, tmp_path: Path) -> None:
    # Deep and wide enough that one batch of the prompt takes seconds on one thread.
    model = write_tiny_model(
        tmp_path / "slow.gguf", hidden=1024, layers=8, ffn=2048, heads=8, context=16_384
    )[0]
    engine = start(
        model, "--ctx-size", "16384", "--parallel", "1", "--batch-size", "8192", "--ubatch-size", "8192"
    )
    engine.wait_healthy()
    body = {"prompt": " story" * 8000, "max_tokens": 1, "stream": True}
    with pytest.raises(httpx.TransportError), httpx.Client(timeout=1) as client:
        client.post(f"{engine.url}/v1/completions", json=body)
    started = time.monotonic()
    engine.process.send_signal(signal.SIGTERM)
    assert engine.wait_exit() == 0
    assert time.monotonic() - started < 3


def test_a_port_in_use(engine: Engine, models: Path, start: Start) -> None:
    port = int(engine.url.rpartition(":")[2])
    second = start(models / "causal.gguf", port=port)
    assert second.wait_exit() == 1
    assert "couldn't bind" in second.log
    assert str(port) in second.log
    assert answer(engine, max_tokens=1)["usage"]["completion_tokens"] == 1


def broken(models: Path, folder: Path, kind: str) -> Path:
    path = folder / "model.gguf"
    data = (models / "causal.gguf").read_bytes()
    match kind:
        case "truncated data":
            path.write_bytes(data[: len(data) // 2])
        case "truncated header":
            path.write_bytes(data[:1000])
        case "wrong magic":
            path.write_bytes(b"PK\x03\x04" + data[4:])
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.mkdir()
        case _:
            assert kind == "missing"
    return path


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("truncated data", "not within the file bounds"),
        ("truncated header", "failed to"),
        ("wrong magic", "invalid magic"),
        ("empty", "failed to"),
        ("folder", "is a folder"),
        ("missing", "there is no file"),
    ],
)
def test_a_broken_model_ends_it_with_the_cause(
    models: Path, start: Start, tmp_path: Path, kind: str, cause: str
) -> None:
    engine = start(broken(models, tmp_path, kind))
    assert engine.wait_exit() == 1
    assert cause in engine.log
    assert "Traceback" not in engine.log


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_model_that_may_not_be_read(models: Path, start: Start, tmp_path: Path) -> None:
    path = Path(shutil.copy(models / "causal.gguf", tmp_path))
    path.chmod(0)
    engine = start(path)
    assert engine.wait_exit() == 1
    assert "not readable" in engine.log


def test_a_mistake_in_argv(models: Path, start: Start) -> None:
    engine = start(models / "causal.gguf", "--no-mmap", port=free_port())
    assert engine.wait_exit() == 1
    assert engine.log.startswith("cortex-llama-server: --no-mmap: ")
    assert engine.log.endswith("use --load-mode none instead\n")
    assert engine.log.count("\n") == 1
