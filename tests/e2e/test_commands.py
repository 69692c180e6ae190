"""Every command of `cortex` against the running system: its JSON, its words, its exit codes."""

import json
import os
import shutil
from pathlib import Path

import pytest
from cortex_llamacpp.tiny import STORY, write_tiny_model

from tests.e2e.system import System, until


@pytest.fixture
def story(system: System) -> Path:
    return system.home / "models" / "story.gguf"


def test_lists_and_shows(system: System) -> None:
    models = {model["name"]: model for model in system.json("models", "list")}
    assert {"story", "vectors"} <= set(models)
    assert models["story"]["state"] == "running"
    assert models["story"]["ready_replicas"] == 1
    shown = system.json("models", "show", "story")
    assert shown["id"] == models["story"]["id"]
    (instance,) = shown["instances"]
    assert instance["phase"] == "ready"
    assert system.json("instances", "show", instance["id"])["pid"] > 0
    assert instance["id"] in [found["id"] for found in system.json("instances", "list")]
    table = system.cortex("models", "list").stdout
    assert "running" in table
    assert "story" in table


def test_status_nodes_usage_events_whoami(system: System) -> None:
    assert system.json("status")["api_url"] == system.access["api_url"]
    (node,) = system.json("nodes", "list")
    assert node["memory_total_mib"] > 0
    assert system.json("nodes", "show", node["name"])["name"] == node["name"]
    assert "items" in system.json("usage")
    kinds = {event["kind"] for event in system.json("events", "--limit", "500")}
    assert "model.created" in kinds
    for words in (
        ("status",),
        ("nodes", "list"),
        ("usage",),
        ("events",),
        ("instances", "list"),
        ("keys", "list"),
    ):
        assert system.cortex(*words).stdout.strip()


def test_doctor_finds_nothing_wrong(system: System) -> None:
    found = system.json("doctor")
    assert found["ok"] is True
    assert {"api", "gateway", "monitor", "node-agent"} <= {finding["what"] for finding in found["findings"]}


def test_chat(system: System) -> None:
    said = system.cortex("chat", "story", "--message", "A story, please.", "--temperature", "0").stdout
    assert said.strip() == STORY
    whole = system.json("chat", "story", "-m", "A story, please.", "--temperature", "0")
    assert whole["choices"][0]["message"]["content"] == STORY
    done = system.cortex("chat", "nobody", "-m", "Hello?", status=4)
    assert "nobody" in done.stderr


def test_logs(system: System) -> None:
    assert system.cortex("models", "logs", "story").stdout.strip()
    assert len(system.cortex("models", "logs", "story", "--tail", "3").stdout.splitlines()) <= 3
    system.cortex("models", "logs", "nobody", status=4)


def test_starting_what_runs_and_stopping_what_does_not_is_fine(system: System, story: Path) -> None:
    before = system.json("instances", "list")
    assert system.json("models", "start", "story")["state"] == "running"
    assert [found["pid"] for found in system.json("instances", "list")] == [found["pid"] for found in before]
    system.cortex("models", "create", "idle", "--set", f"local_path={story}")
    assert system.json("models", "stop", "idle")["state"] == "stopped"
    system.cortex("models", "delete", "idle")


def test_a_model_from_its_making_to_its_end(system: System, story: Path) -> None:
    made = system.json(
        "models",
        "create",
        "brief",
        "--engine=llamacpp",
        "--set",
        f"local_path={story}",
        "--set",
        "context_size=512",
    )
    assert made["state"] == "stopped"
    assert made["context_size"] == 512
    plan = system.json("models", "dry-run", "brief")
    assert "llama-server" in json.dumps(plan)
    assert system.json("models", "start", "brief")["state"] == "running"
    system.cortex("models", "delete", "brief", status=5)
    assert system.json("models", "patch", "brief", "--set", "context_size=1024")["context_size"] == 1024
    system.until_state("brief", "running")
    assert system.json("models", "stop", "brief")["state"] == "stopped"
    system.cortex("models", "delete", "brief")
    system.cortex("models", "show", "brief", status=4)
    assert story.exists()


def test_delete_can_stop_first(system: System, story: Path) -> None:
    system.cortex("run", str(story), "--name", "fleeting")
    system.cortex("models", "delete", "fleeting", "--stop")
    gone = lambda: system.cortex("models", "show", "fleeting", status=None).returncode == 4  # noqa: E731 (one line)
    until(gone, 30, "fleeting is deleted")


def test_run_again_reuses_what_is_equal_and_refuses_what_differs(system: System, story: Path) -> None:
    again = system.json("run", str(story))
    assert again["id"] == system.json("models", "show", "story")["id"]
    done = system.cortex("run", str(story), "--ctx", "256", status=5)
    assert "--name" in done.stderr
    assert system.json("run", "story")["id"] == again["id"]


def test_a_file_outside_the_models_folder_is_served_where_it_is(system: System, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.gguf"
    write_tiny_model(file)
    assert system.json("run", str(file))["state"] == "running"
    assert system.cortex("chat", "elsewhere", "-m", "Hello", "--temperature", "0").stdout.strip() == STORY
    system.cortex("models", "delete", "elsewhere", "--stop")
    assert file.exists()


def _truncated(good: Path, bad: Path) -> None:
    bad.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def _not_gguf(_good: Path, bad: Path) -> None:
    bad.write_bytes(b"PK\x03\x04" + bytes(5000))


def _empty(_good: Path, bad: Path) -> None:
    bad.touch()


@pytest.mark.parametrize("spoil", [_truncated, _not_gguf, _empty])
def test_a_bad_file_fails_with_a_reason_and_loses_nothing(
    system: System, story: Path, spoil: "object", request: pytest.FixtureRequest
) -> None:
    assert callable(spoil)
    bad = system.home / "models" / "bad.gguf"
    spoil(story, bad)
    request.addfinalizer(lambda: bad.unlink(missing_ok=True))
    done = system.cortex("run", str(bad), status=None)
    # Refused at once by the API, which asks the node to look, or failed on the node: told either way.
    assert done.returncode in (2, 7), done.stderr
    assert "bad" in done.stderr
    assert "remedy" in done.stderr
    system.cortex("models", "delete", "bad", "--stop", status=None)
    assert system.json("models", "show", "story")["state"] == "running"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_told(system: System, story: Path) -> None:
    locked = system.home / "models" / "locked.gguf"
    shutil.copy(story, locked)
    locked.chmod(0)
    try:
        done = system.cortex("run", str(locked), status=None)
        assert done.returncode in (2, 7)
        assert "locked" in done.stderr
    finally:
        locked.unlink()
        system.cortex("models", "delete", "locked", "--stop", status=None)


def test_a_path_outside_the_models_folders_is_refused(system: System) -> None:
    words = (
        "models",
        "create",
        "outside",
        "--engine=llamacpp",
        "--set",
        "local_path=../../etc/passwd",
        "--start",
    )
    done = system.cortex(*words, status=None)
    if done.returncode == 0:
        done = system.cortex("models", "start", "outside", status=7)
    assert done.returncode in (2, 7)
    system.cortex("models", "delete", "outside", "--stop", status=None)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--set", "contxt_size=5"), 2, "context_size"),
        (("--set", "context_size=-5"), 2, "context_size"),
        (("--set", "context_size=many"), 2, "context_size"),
        (("--set", "tensor_split=a,b"), 2, "tensor_split"),
        (("--set", "replicas=-1"), 2, "replicas"),
        (("--set", "port=1"), 2, "port"),
        (("--engine=frob",), 2, "engine_type"),
    ],
)
def test_wrong_settings_are_named(
    system: System, story: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    engine = () if any(word.startswith("--engine") for word in words) else ("--engine=llamacpp",)
    done = system.cortex(
        "models", "create", "wrong", *engine, "--set", f"local_path={story}", *words, status=status
    )
    assert said in done.stderr
    system.cortex("models", "show", "wrong", status=4)


def test_names_in_use_are_conflicts(system: System, story: Path) -> None:
    base = ("--engine=llamacpp", "--set", f"local_path={story}")
    assert "story" in system.cortex("models", "create", "story", *base, status=5).stderr
    made = system.cortex("models", "create", "double", *base, "--set", "served_model_name=story", status=None)
    if made.returncode == 0:  # two may share a served name while only one is routed
        done = system.cortex("models", "start", "double", status=5)
        assert "story" in done.stderr
        system.cortex("models", "delete", "double")
    else:
        assert made.returncode == 5


def test_keys(system: System) -> None:
    made = system.json("keys", "create", "ci", "--requests-per-minute", "5")
    assert made["key"].startswith("sk-cortex-")
    listed = {key["id"]: key for key in system.json("keys", "list")}
    assert "key" not in listed[made["id"]]
    assert made["key"].startswith(listed[made["id"]]["shown"])
    system.cortex("keys", "revoke", str(made["id"]))
    system.cortex("keys", "revoke", "999999", status=4)


def test_another_key_may_do_less(system: System) -> None:
    viewer = system.json("keys", "create", "looker", "--role", "viewer")["key"]
    url = system.access["api_url"]
    system.cortex("--api-url", url, "--token", viewer, "models", "list")
    system.cortex("--api-url", url, "--token", viewer, "models", "stop", "story", status=6)
    system.cortex("--api-url", url, "--token", "sk-cortex-nobody", "models", "list", status=6)


def test_a_node_is_invited_by_a_file_of_its_own(system: System, tmp_path: Path) -> None:
    out = tmp_path / "far.creds"
    system.cortex("nodes", "add", "far-away", "--out", str(out))
    assert out.stat().st_mode & 0o777 == 0o600
    assert "BEGIN NATS USER JWT" in out.read_text()
    system.cortex("nodes", "add", "far-away-too", "--out", str(out), status=5)


def test_a_cordoned_node_takes_no_model(system: System, story: Path) -> None:
    (node,) = (found for found in system.json("nodes", "list") if found.get("memory_total_mib"))
    system.cortex("nodes", "cordon", node["name"])
    try:
        assert system.json("nodes", "show", node["name"])["cordoned"] is True
        assert system.json("models", "show", "story")["state"] == "running"
    finally:
        system.cortex("nodes", "uncordon", node["name"])


def test_a_second_up_says_who_runs_and_where(system: System) -> None:
    assert system.process is not None
    done = system.cortex("up", status=5)
    assert str(system.process.pid) in done.stderr
    assert system.access["gateway_url"] in done.stderr
    assert system.cortex("up", "--detach").returncode == 0


def test_reset_asks(system: System) -> None:
    system.cortex("reset", status=2)
    assert (system.home / "access.json").exists()
