"""Settings that a real vLLM does not start with: refused at once, or failed with a reason and a remedy."""

from typing import Any

import pytest

from tests.e2e.system import until
from tests.vllm.fleet import SETTINGS, START_SECONDS, Fleet, session_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def failed(fleet: Fleet, name: str, **settings: Any) -> dict[str, Any]:
    """Start a model that cannot run; its state's reason, when it is stopped again."""
    fleet.create(name, **settings)
    fleet.api("POST", f"/models/{name}/start")

    def explained(shown: dict[str, Any]) -> bool:
        return shown["state"] == "failed" and shown["state_reason"]["code"] != "exited"

    shown = fleet.until(name, explained, f"{name} failed with a reason", seconds=START_SECONDS)
    fleet.api("POST", f"/models/{name}/stop")
    fleet.until_state(name, "stopped", seconds=60)
    return shown["state_reason"]


def test_an_unknown_dtype_is_refused_when_the_model_is_made(fleet: Fleet) -> None:
    answer = fleet.admin.post("/models", json={"name": "typed", **SETTINGS, "dtype": "float13"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["field"] == "dtype"
    assert "bfloat16" in error["message"]


def test_more_context_than_the_model_has_fails_and_names_the_length(fleet: Fleet) -> None:
    reason = failed(fleet, "long", max_model_len=100_000)
    assert reason["code"] == "context_too_large"
    assert "8192" in reason["remedy"]
    until(lambda: not fleet.api("GET", "/models/long/instances")["items"], 30, "its instance is gone")


def test_a_cache_too_small_fails_in_the_engine_core_and_names_what_fits(fleet: Fleet) -> None:
    # The cause is written by another process than the one that ends, long before the end of the log.
    reason = failed(fleet, "narrow", max_model_len=8192, kv_cache_memory_bytes=2**20)
    assert reason["code"] == "context_too_large"
    assert "384 tokens" in reason["message"]


def test_a_changed_setting_mends_it(fleet: Fleet) -> None:
    if fleet.admin.get("/models/long").status_code == 404:
        fleet.create("long", max_model_len=100_000)
    fleet.api("PATCH", "/models/long", {"max_model_len": 512})
    fleet.run("long")
    assert len(fleet.story("long", max_tokens=5).split()) == 5
    pid = fleet.instance("long")["pid"]
    fleet.api("DELETE", "/models/long?stop=true")
    fleet.until_gone("long")
    assert not session_of(pid)
