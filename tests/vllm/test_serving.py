"""A real vLLM from the REST call to the answer, and through kill, change and stop."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from cortex_llamacpp.tiny import STORY

from tests.e2e.system import until
from tests.vllm.fleet import QUESTION, START_SECONDS, Fleet, session_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_KEY = b"VLLM_API_KEY"


@pytest.fixture(scope="module")
def phases(fleet: Fleet) -> list[str]:
    """Phases through which the model `story` went until it ran, as its instance showed them."""
    fleet.create("story")
    fleet.api("POST", "/models/story/start")
    seen: list[str] = []

    def look(shown: dict[str, Any]) -> bool:
        for instance in shown["instances"]:
            if instance["phase"] not in seen:
                seen.append(instance["phase"])
        assert shown["state"] != "failed", f"{shown['state_reason']}\n{fleet.log('story')}"
        return shown["state"] == "running"

    fleet.until("story", look, "story is running", seconds=START_SECONDS)
    return seen


@pytest.fixture
def running(fleet: Fleet, phases: list[str]) -> Fleet:
    """The model `story` runs, whatever a test before did to it."""
    assert phases
    fleet.run("story")
    return fleet


def test_a_dry_run_shows_the_plan(fleet: Fleet) -> None:
    fleet.create("planned", cuda_graph_sizes=None, block_size=128)
    shown = fleet.api("POST", "/models/planned/dry-run")
    plan = shown["plan"]
    assert shown["reason"] is None
    assert plan["argv"][:6] == ["serve", "{model}", "--host", "{host}", "--port", "{port}"]
    line = " ".join(plan["argv"])
    for words in ("--enforce-eager", "--max-model-len 2048", "--kv-cache-memory-bytes 67108864"):
        assert words in line
    assert plan["secrets"] == {"VLLM_API_KEY": "engine_key"}
    fleet.api("DELETE", "/models/planned")


def test_a_start_goes_through_loading_to_ready(phases: list[str]) -> None:
    order = ["placed", "fetching", "starting", "loading", "ready"]
    assert phases == sorted(phases, key=order.index)
    assert phases[-1] == "ready"
    assert "starting" in phases


def test_events_tell_of_the_start(running: Fleet) -> None:
    kinds = [event["kind"] for event in running.api("GET", "/models/story/events")["items"]]
    assert {"instance.started", "instance.ready"} <= set(kinds)


def test_chat(running: Fleet) -> None:
    answer = running.client.chat.completions.create(model="story", messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == STORY
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "story"


def test_streaming(running: Fleet) -> None:
    pieces: list[str] = []
    usage = None
    with running.client.chat.completions.create(
        model="story", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as events:
        for event in events:
            pieces += [choice.delta.content or "" for choice in event.choices]
            usage = event.usage or usage
    assert "".join(pieces) == STORY
    assert len([piece for piece in pieces if piece]) > 10
    assert usage is not None
    assert usage.completion_tokens >= len(STORY.split())


def test_completions(running: Fleet) -> None:
    words = STORY.split()
    answer = running.client.completions.create(
        model="story", prompt=" ".join(words[:4]), temperature=0, max_tokens=8
    )
    assert answer.choices[0].text.strip() == " ".join(words[4:12])
    assert answer.choices[0].finish_reason == "length"


def test_models(running: Fleet) -> None:
    assert "story" in {model.id for model in running.client.models.list()}


def test_the_engine_wants_its_key(running: Fleet) -> None:
    url = running.instance("story")["url"]
    assert httpx.get(f"{url}/health").status_code == 200
    body = {"model": "story", "messages": QUESTION, "max_tokens": 1}
    for headers in ({}, {"Authorization": f"Bearer {running.system.access['api_key']}"}):
        assert httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers).status_code == 401


def test_no_key_is_in_argv_or_log(running: Fleet) -> None:
    pid = running.instance("story")["pid"]
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (key,) = [value for name, _, value in (line.partition(b"=") for line in variables) if name == _KEY]
    assert key
    for one in session_of(pid):
        assert key not in Path(f"/proc/{one}/cmdline").read_bytes()
    assert key.decode() not in running.log("story")


def test_usage_is_counted(running: Fleet) -> None:
    def counted() -> tuple[int, int]:
        rows = running.api("GET", "/usage")["items"]
        (row,) = [row for row in rows if row["group"] == "story"] or [{"requests": 0, "completion_tokens": 0}]
        return row["requests"], row["completion_tokens"]

    # Records arrive some moments after their answers; those of tests before may still be on their way.
    before = counted()
    running.story("story", max_tokens=7)
    until(lambda: counted()[0] > before[0] and counted()[1] >= before[1] + 7, 90, "the request is counted")


def test_a_killed_engine_leaves_nothing_behind_and_comes_back(running: Fleet) -> None:
    before = running.instance("story")
    processes = session_of(before["pid"])
    assert len(processes) >= 2, "vLLM's engine core is a process of its own"
    os.kill(before["pid"], signal.SIGKILL)
    # Their numbers may be given anew: what counts is the session.
    until(lambda: not session_of(before["pid"]), 20, f"nothing is left of {processes}")

    def back(_shown: dict[str, Any]) -> bool:
        now = running.instance("story")
        return now["phase"] == "ready" and now["pid"] != before["pid"]

    running.until("story", back, "another engine is ready", seconds=START_SECONDS)
    after = running.instance("story")
    assert after["restarts"] == before["restarts"] + 1
    assert after["last_exit"]["signal"] == signal.SIGKILL
    running.until_state("story", "running")
    assert running.story("story") == STORY


def test_a_change_replaces_the_engine(running: Fleet) -> None:
    before = running.instance("story")
    running.api("PATCH", "/models/story", {"max_model_len": 1024})

    def replaced(_shown: dict[str, Any]) -> bool:
        now = running.instance("story")
        return now["phase"] == "ready" and now["generation_running"] > before["generation_running"]

    running.until("story", replaced, "the new generation is ready", seconds=START_SECONDS)
    after = running.instance("story")
    assert after["plan_hash_running"] != before["plan_hash_running"]
    assert not session_of(before["pid"])
    running.until_state("story", "running")
    # vLLM itself says how long a request may be now.
    assert running.story("story", max_tokens=900)
    with pytest.raises(Exception, match="1024"):
        running.story("story", max_tokens=1500)


def test_a_stop_lets_streams_finish_and_ends_with_grace(running: Fleet) -> None:
    pid = running.instance("story")["pid"]
    words: list[str] = []
    ended: list[str | None] = []
    begun = threading.Event()

    def read() -> None:
        with running.client.chat.completions.create(
            model="story",
            messages=QUESTION,
            temperature=0,
            max_tokens=400,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as events:
            for event in events:
                words.extend(choice.delta.content or "" for choice in event.choices)
                ended.extend(choice.finish_reason for choice in event.choices if choice.finish_reason)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)
    running.api("POST", "/models/story/stop")
    reader.join(60)
    assert ended == ["length"]
    assert "".join(words).startswith(STORY)
    running.until_state("story", "stopped", seconds=60)
    assert not session_of(pid)
    events = running.api("GET", "/models/story/events")["items"]
    assert "instance.stopped" in [event["kind"] for event in events]
