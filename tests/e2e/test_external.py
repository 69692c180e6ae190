"""A llama.cpp that Cortex did not start, served through it: keys, limits, usage, and its death told."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import openai
import pytest
from cortex_llamacpp.tiny import STORY, write_tiny_model

from tests.e2e.system import System, until
from tests.integration.llamacpp.conftest import Engine, Start, free_port, starter

THEIR_KEY = "sk-theirs-0123456789abcdef"
QUESTION: list[Any] = [{"role": "user", "content": "Tell me a story, please."}]


@pytest.fixture
def start() -> Iterator[Start]:
    with TemporaryDirectory(prefix="cortex-outside-") as folder, starter(Path(folder)) as start_engine:
        yield start_engine


def outside(system: System, start: Start, port: int) -> Engine:
    model = system.home.parent / "outside.gguf"
    if not model.exists():
        write_tiny_model(model)
    engine = start(
        model, "--alias", "outside", "--ctx-size", "4096", port=port, environment={"LLAMA_API_KEY": THEIR_KEY}
    )
    engine.wait_healthy()
    return engine


def api(system: System) -> httpx.Client:
    token = system.access["admin_token"]
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=f"{system.access['api_url']}/api/v1", headers=headers, timeout=30)


def chat(system: System, key: str, model: str = "outside") -> Any:
    with openai.OpenAI(
        base_url=f"{system.access['gateway_url']}/v1", api_key=key, max_retries=0, timeout=60
    ) as client:
        return client.chat.completions.create(model=model, messages=QUESTION, temperature=0)


def test_a_server_that_others_run_is_served_limited_and_counted(empty_system: System, start: Start) -> None:
    system, port = empty_system, free_port()
    engine = outside(system, start, port)
    body = {
        "name": "outside",
        "engine_type": "external",
        "engine": "llamacpp",
        "endpoints": [{"url": engine.url, "api_key": "sk-not-this-one"}],
        "policy": {"concurrency": 2},
    }
    with api(system) as client:
        made = client.post("/models", json=body)
        assert made.status_code == 201, made.text
        client.post("/models/outside/start")
        found = system.until_state("outside", "failed")
        assert found["state_reason"]["code"] == "external.key_refused"
        change = {"endpoints": [{"url": engine.url, "api_key": THEIR_KEY}]}
        assert client.patch("/models/outside", json=change).status_code == 200
        shown = system.until_state("outside", "running")
        assert shown["endpoints"][0]["api_key_set"] is True
        assert shown["endpoints"][0]["latency_seconds"] > 0
        assert THEIR_KEY not in json.dumps(shown)
        limited = {"name": "limited", "models": ["outside"], "concurrency": 1, "tokens_per_day": 1_000_000}
        key = client.post("/keys", json=limited).json()

        answer = chat(system, key["key"])
        assert answer.choices[0].message.content == STORY
        assert answer.model == "outside"
        with pytest.raises(openai.NotFoundError):
            chat(system, key["key"], "nobody")

        def used() -> dict[str, Any]:
            return client.get("/usage", params={"key": key["id"], "model": "outside"}).json()["total"]

        until(lambda: used()["requests"] == 1, 10, "the request is counted")
        assert used()["completion_tokens"] == answer.usage.completion_tokens

        few = client.post("/keys", json={"name": "few", "requests_per_minute": 2}).json()
        until(lambda: _answers(system, few["key"]), 5, "the new key is known")
        chat(system, few["key"])
        with pytest.raises(openai.RateLimitError):
            chat(system, few["key"])

        engine.process.send_signal(signal.SIGKILL)
        engine.process.wait()
        failed = system.until_state("outside", "failed")
        assert failed["state_reason"]["code"] == "external.refused"
        assert engine.url in failed["state_reason"]["message"]
        with pytest.raises(openai.APIStatusError):
            chat(system, key["key"])
        outside(system, start, port)
        system.until_state("outside", "running")
        until(lambda: _answers(system, key["key"]), 10, "it answers again")
    for path in (system.home / "logs").glob("*.log"):
        assert THEIR_KEY not in path.read_text(errors="replace"), path
    for path in (system.home / "data").rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert THEIR_KEY.encode() not in path.read_bytes(), path
    system.cortex("models", "delete", "outside", "--stop")


def _answers(system: System, key: str) -> bool:
    try:
        return bool(chat(system, key).choices)
    except openai.APIStatusError:
        return False


def test_the_command_says_it_in_words(empty_system: System, start: Start, tmp_path: Path) -> None:
    system, port = empty_system, free_port()
    engine = outside(system, start, port)
    key = tmp_path / "their.key"
    key.write_text(f"{THEIR_KEY}\n")
    done = system.cortex(
        "models",
        "create",
        "in-words",
        "--endpoint",
        f"{engine.url}/v1,weight=2,api_key_file={key}",
        "--set",
        "policy.balance=prefix",
        "--set",
        "policy.fallbacks=nobody",
        "--start",
    )
    assert "in-words created and started" in done.stdout
    assert "'nobody'" in done.stderr
    shown = system.until_state("in-words", "running")
    assert shown["policy"]["balance"] == "prefix"
    text = system.cortex("models", "show", "in-words").stdout
    assert engine.url in text
    assert "running" in text
    assert THEIR_KEY not in text
    assert "1/1" in system.cortex("models", "list").stdout
    changes = system.json("audit", "--action", "model", "--limit", "5")
    assert changes[0]["action"].startswith("model.")
    assert "in-words" in system.cortex("events").stdout
    assert "no node has" in system.cortex("instances", "delete", "nothing-7-abcdef", status=4).stderr
    system.cortex("models", "delete", "in-words", "--stop")
