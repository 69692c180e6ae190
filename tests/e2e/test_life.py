"""Up, down, up again; Ctrl-C at any moment; a supervisor that is killed; `make run`."""

import signal
import subprocess
import sys

import pytest
from cortex_llamacpp.tiny import STORY, write_tiny_model

from tests.e2e.system import System, until


@pytest.mark.slow
def test_what_ran_runs_again_after_down_and_up(alone: System) -> None:
    alone.start()
    assert "Admin token" in alone.output
    write_tiny_model(alone.home / "models" / "story.gguf")
    alone.cortex("run", str(alone.home / "models" / "story.gguf"))
    before = alone.access
    assert oct((alone.home / "access.json").stat().st_mode & 0o777) == "0o600"
    done = alone.cortex("down")
    assert "Stopped" in done.stdout
    alone.until_nothing_runs()

    alone.start()
    assert "Admin token" not in alone.output
    assert alone.access == before
    alone.until_state("story", "running")
    until(lambda: _answers(alone), 15, "the model answers")
    assert alone.cortex("chat", "story", "-m", "Hi", "--temperature", "0").stdout.strip() == STORY
    assert alone.interrupt() == 0
    alone.until_nothing_runs()


def _answers(system: System) -> bool:
    return system.cortex("chat", "story", "-m", "Hi", "--max-tokens", "1", status=None).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["at once", "first words", "initdb", "nats", "services", "ready"])
def test_ctrl_c_at_any_moment_leaves_nothing_running(alone: System, moment: str) -> None:
    signs = {
        "initdb": "data/postgres.new",
        "nats": "run/nats.json",
        "services": "run/api.json",
    }
    alone.begin()
    assert alone.process is not None
    if moment in signs:
        until(lambda: (alone.home / signs[moment]).exists(), 60, signs[moment])
    elif moment == "first words":
        alone.until_says("Cortex starts")
    elif moment == "ready":
        alone.until_says("Cortex is ready")
    else:
        until(lambda: alone.home.exists(), 60, "the home")
    alone.interrupt()
    alone.until_nothing_runs()
    if moment in ("initdb", "services"):  # the moments that leave half-made things behind
        alone.start()
        assert alone.interrupt() == 0
        alone.until_nothing_runs()


@pytest.mark.slow
def test_an_up_during_a_draining_one_waits(alone: System) -> None:
    alone.start()
    first = alone.process
    assert first is not None
    first.send_signal(signal.SIGINT)
    until(lambda: "Stopping" in alone.output, 10, "it drains")
    alone.start()
    assert first.wait(1) == 0
    assert alone.interrupt() == 0


@pytest.mark.slow
def test_a_killed_supervisor_takes_its_servers_along_and_the_next_up_finds_the_engines(alone: System) -> None:
    alone.start()
    write_tiny_model(alone.home / "models" / "story.gguf")
    alone.cortex("run", str(alone.home / "models" / "story.gguf"))
    (before,) = alone.json("instances", "list")
    assert alone.process is not None
    alone.process.kill()
    alone.process.wait()
    alone.start()
    alone.until_state("story", "running")
    (after,) = alone.json("instances", "list")
    assert (after["pid"], after["restarts"]) == (before["pid"], before["restarts"])
    assert alone.process is not None
    alone.process.kill()
    alone.process.wait()
    alone.cortex("down")
    alone.until_nothing_runs()


@pytest.mark.slow
def test_detached(alone: System) -> None:
    gateway, api = alone.ports
    said = alone.cortex("up", "--detach", "--gateway-port", str(gateway), "--api-port", str(api)).stdout
    assert "Cortex is ready" in said
    assert alone.access["gateway_url"].endswith(f":{gateway}")
    assert alone.json("models", "list") == []
    alone.cortex("down")
    alone.until_nothing_runs()
    alone.cortex("models", "list", status=3)
    alone.cortex("reset", "--yes", "--models")
    assert not alone.home.exists()


def test_an_explicit_port_that_is_taken_is_an_error_and_a_remembered_one_is_not(alone: System) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = alone.cortex("up", "--gateway-port", str(port), status=5)
    assert str(port) in done.stderr
    assert "remedy" in done.stderr
    alone.until_nothing_runs()


@pytest.mark.slow
def test_make_run_answers_and_the_second_time_serves_what_ran(alone: System) -> None:
    first = _make_run(alone)
    assert "random" in first
    assert STORY[:60] in first
    assert "curl" in first
    assert "Admin token" in first
    second = _make_run(alone)
    assert "Served as before: cortex-tiny" in second
    assert STORY[:60] in second
    assert "Admin token" not in second


def _make_run(system: System) -> str:
    """`make run` until its last words, then Ctrl-C; all it said."""
    output = system.home.with_name("make-run.out")
    with output.open("wb") as file:
        running = subprocess.Popen(
            [sys.executable, "-m", "cortex_cli.first_run", ""],
            env=system.environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(lambda: "curl" in output.read_text() or running.poll() is not None, 90, "the answer")
        running.send_signal(signal.SIGINT)
        running.wait(60)
    finally:
        if running.poll() is None:
            running.kill()
    system.until_nothing_runs()
    return output.read_text()
