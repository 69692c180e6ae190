"""What dies, hangs or is missing: agents, runners, engines, files, programs, ports, secrets, disks."""

import asyncio
import json
import marshal
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cortex_node_agent import runner
from cortex_shared.contracts.plan import ModelFile, Probe
from cortex_shared.contracts.rpc import LogsReply, LogsRequest, node_rpc_subject

from tests.integration.node_agent.conftest import (
    FAKE,
    NODE,
    AgentUnderTest,
    Fleet,
    NatsUnderTest,
    alive,
    free_port,
    until,
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_end_of_an_agent_ends_no_engine(
    fleet: Fleet, agent: AgentUnderTest, number: signal.Signals
) -> None:
    agent.start()
    await fleet.start("ready")
    await fleet.start("loads", env={"FAKE_LOAD_SECONDS": "6", "FAKE_PRINT": "loading the model"})
    ready = await fleet.phase("ready", "ready")
    loads = await fleet.phase("loads", "loading")
    agent.kill(number)
    before = fleet.node()
    assert before is not None
    seen: set[tuple[str, str]] = set()
    agent.start()

    def is_new() -> bool:
        node = fleet.node()
        if node is None or node.agent_started_at == before.agent_started_at:
            return False
        seen.update((one.instance, one.phase) for one in node.instances)
        return True

    await until(is_new, "the new agent's first report")
    after = await fleet.phase("loads", "ready")
    assert after.pid == loads.pid
    assert (await fleet.phase("ready", "ready")).pid == ready.pid
    # Routes follow this: a ready engine is never reported as anything else.
    assert {phase for name, phase in seen if name == "ready"} == {"ready"}


async def test_a_ready_engine_that_is_found_while_too_busy_to_answer_stays_ready(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    agent.start()
    await fleet.start("i1", probe=Probe(interval_seconds=2, timeout_seconds=2, failures_max=3))
    ready = await fleet.phase("i1", "ready")
    agent.kill()
    assert ready.pid is not None
    os.kill(ready.pid, signal.SIGSTOP)
    before = fleet.node()
    assert before is not None
    try:
        agent.start()
        await until(
            lambda: (node := fleet.node()) and node.agent_started_at != before.agent_started_at, "a report"
        )
        assert (await fleet.phase("i1", "ready")).pid == ready.pid
    finally:
        os.kill(ready.pid, signal.SIGCONT)


async def test_a_killed_engine_is_started_again(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    await fleet.start("i1")
    ready = await fleet.phase("i1", "ready")
    assert ready.pid is not None
    began = time.monotonic()
    os.kill(ready.pid, signal.SIGKILL)
    failed = await fleet.phase("i1", "failed")
    assert failed.reason is not None
    assert failed.reason.code == "exited"
    assert failed.last_exit is not None
    assert failed.last_exit.signal == signal.SIGKILL
    assert failed.last_exit.last_lines[-1] == "fake engine: ready"
    assert failed.next_try_at is not None
    again = await fleet.phase("i1", "ready", restarts=1)
    assert again.pid != ready.pid
    assert time.monotonic() - began < 10


async def test_a_killed_runner_takes_its_engine_along_and_all_is_started_again(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    agent.start()
    await fleet.start("i1", env={"FAKE_CHILDREN": "2", "FAKE_CHILDREN_SETSID": "1"})
    ready = await fleet.phase("i1", "ready")
    children = [child.pid for child in psutil.Process(ready.pid).children()]
    os.kill(agent.record("i1")["runner_pid"], signal.SIGKILL)
    again = await fleet.phase("i1", "ready", restarts=1)
    assert again.port == ready.port
    assert not any(alive(pid) for pid in [ready.pid, *children])


async def test_a_runner_killed_while_the_agent_is_away_leaves_nothing_behind(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    agent.start()
    await fleet.start("i1", env={"FAKE_CHILDREN": "1"})
    ready = await fleet.phase("i1", "ready")
    children = [child.pid for child in psutil.Process(ready.pid).children()]
    agent.kill()
    os.kill(agent.record("i1")["runner_pid"], signal.SIGKILL)
    await until(lambda: not alive(ready.pid), "the engine's end")
    agent.start()
    await until(lambda: (found := fleet.instance("i1")) and found.pid not in (None, ready.pid), "a new one")
    assert not any(alive(pid) for pid in children)


async def test_an_engine_that_ends_at_once_is_tried_ever_more_seldom(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    agent.start()
    env = {"FAKE_EXIT_SECONDS": "0", "FAKE_EXIT_STATUS": "3"}
    await fleet.start("i1", env=env)
    failed = await fleet.phase("i1", "failed", restarts=3)
    assert failed.next_try_at is not None
    assert (failed.next_try_at - failed.since).total_seconds() == pytest.approx(2, abs=0.2)
    assert failed.last_exit is not None
    assert failed.last_exit.status == 3
    # A newer generation is tried at once.
    await fleet.start("i1", 2)
    await fleet.phase("i1", "ready", generation=2, restarts=0)


async def test_an_unhealthy_engine_is_unready_until_it_answers(
    fleet: Fleet, agent: AgentUnderTest, folder: Path
) -> None:
    sick = folder / "sick"
    agent.start()
    await fleet.start("i1", env={"FAKE_UNHEALTHY_FILE": str(sick)})
    ready = await fleet.phase("i1", "ready")
    sick.touch()
    unready = await fleet.phase("i1", "unready")
    assert unready.reason is not None
    assert unready.reason.code == "probe_failed"
    sick.unlink()
    assert (await fleet.phase("i1", "ready")).pid == ready.pid


async def test_an_engine_with_work_that_does_not_move_is_restarted(
    fleet: Fleet, agent: AgentUnderTest, folder: Path
) -> None:
    # One that is stopped outright answers nothing and uses no CPU.
    agent.env |= {"CORTEX_AGENT__STUCK_SECONDS": "1", "CORTEX_AGENT__TELEMETRY_SECONDS": "0.3"}
    agent.start()
    await fleet.start("i1")
    ready = await fleet.phase("i1", "ready")
    assert ready.pid is not None
    os.kill(ready.pid, signal.SIGSTOP)
    failed = await fleet.phase("i1", "failed")
    assert failed.reason is not None
    assert failed.reason.code == "stuck"
    assert (await fleet.phase("i1", "ready", restarts=1)).pid != ready.pid


async def test_a_start_that_takes_too_long_fails(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    await fleet.start("i1", env={"FAKE_LOAD_SECONDS": "60"}, start_seconds_max=0.5)
    failed = await fleet.phase("i1", "failed")
    assert failed.reason is not None
    assert failed.reason.code == "start_timeout"
    assert failed.pid is None


async def test_a_file_that_is_missing_is_found_when_it_comes(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.env["CORTEX_AGENT__FILE_RETRY_SECONDS"] = "0.2"
    agent.start()
    await fleet.start("i1", files=[ModelFile(path="model.bin")], argv=["--port", "{port}", "-m", "{model}"])
    failed = await fleet.phase("i1", "failed")
    assert failed.reason is not None
    assert failed.reason.code == "no_file"
    assert failed.reason.remedy
    (agent.models / "model.bin").write_bytes(b"weights")
    ready = await fleet.phase("i1", "ready")
    assert str(agent.models / "model.bin") in psutil.Process(ready.pid).cmdline()


@pytest.mark.parametrize(
    ("path", "code"),
    [("/etc/passwd", "outside_roots"), ("../../etc/passwd", "outside_roots"), ("folder", "bad_file")],
)
async def test_a_bad_file_fails_with_its_reason(
    fleet: Fleet, agent: AgentUnderTest, path: str, code: str
) -> None:
    (agent.models / "folder").mkdir()
    agent.start()
    await fleet.start("i1", files=[ModelFile(path=path, format="gguf")])
    failed = await fleet.phase("i1", "failed")
    assert failed.reason is not None
    assert failed.reason.code == code


async def test_what_this_host_does_not_have_or_allow(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    await fleet.start("program", program="no-such-program")
    await fleet.start("code", remote_code=True)
    await fleet.start("env", env={"LD_PRELOAD": "/tmp/x.so"})
    for instance, code in (("program", "no_program"), ("code", "remote_code"), ("env", "env_not_allowed")):
        failed = await fleet.phase(instance, "failed")
        assert failed.reason is not None
        assert failed.reason.code == code
        assert failed.reason.remedy


async def test_an_explicit_port_in_use_fails_and_a_given_one_moves_on(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    first = int(agent.env["CORTEX_AGENT__PORT_FIRST"])
    with socket.socket() as taken, socket.socket() as other:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        other.bind(("127.0.0.1", 0))
        other.listen()
        agent.start()
        await fleet.start("explicit", port=other.getsockname()[1])
        await fleet.start("given")
        failed = await fleet.phase("explicit", "failed")
        assert failed.reason is not None
        assert failed.reason.code == "port_in_use"
        assert str(other.getsockname()[1]) in failed.reason.message
        assert (await fleet.phase("given", "ready")).port != first


async def test_a_port_is_kept_over_restarts(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    await fleet.start("a")
    a = await fleet.phase("a", "ready")
    await fleet.start("b")
    b = await fleet.phase("b", "ready")
    await fleet.stop("a", 2)
    await fleet.phase("a", "stopped")
    assert b.pid is not None
    os.kill(b.pid, signal.SIGKILL)
    assert (await fleet.phase("b", "ready", restarts=1)).port == b.port
    await fleet.start("a", 3)
    assert (await fleet.phase("a", "ready")).port == a.port


async def test_secrets_reach_the_engine_by_environment_only_and_outlive_the_api(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    answering = asyncio.ensure_future(fleet.answer_secrets())
    agent.start()
    await fleet.start("i1", secrets={"FAKE_API_KEY": "engine_key"})
    ready = await fleet.phase("i1", "ready")
    process = psutil.Process(ready.pid)
    assert process.environ()["FAKE_API_KEY"] == "ck-secret"
    assert not [name for name in process.environ() if name.startswith("CORTEX_") and name != "CORTEX_RUN"]
    runner = psutil.Process(agent.record("i1")["runner_pid"])
    assert "ck-secret" not in "".join([*process.cmdline(), *runner.cmdline(), *runner.environ().values()])
    holding = [
        path.name for path in agent.state.rglob("*") if path.is_file() and b"ck-secret" in path.read_bytes()
    ]
    assert holding == ["secrets.json"]
    assert (agent.state / "instances" / "i1" / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert b"ck-secret" not in agent.log.read_bytes()
    answering.cancel()
    await asyncio.wait([answering])
    assert ready.pid is not None
    os.kill(ready.pid, signal.SIGKILL)
    again = await fleet.phase("i1", "ready", restarts=1)
    assert psutil.Process(again.pid).environ()["FAKE_API_KEY"] == "ck-secret"


async def test_without_secrets_it_waits_for_the_api(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    await fleet.start("i1", secrets={"FAKE_API_KEY": "engine_key"})
    failed = await fleet.phase("i1", "failed")
    assert failed.reason is not None
    assert failed.reason.code == "no_secrets"
    answering = asyncio.ensure_future(fleet.answer_secrets())
    await fleet.phase("i1", "ready")
    answering.cancel()
    await asyncio.wait([answering])


async def test_log_offsets_go_on_over_rotation_and_restarts(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.env |= {"CORTEX_AGENT__LOG_FILE_BYTES_MAX": "10000", "CORTEX_AGENT__LOG_FILES_MAX": "3"}
    agent.start()
    await fleet.start("i1", env={"FAKE_PRINT_BYTES": "50000"})
    ready = await fleet.phase("i1", "ready")

    async def ask(offset: int | None, tail_lines: int = 200) -> LogsReply:
        request = LogsRequest(instance="i1", offset=offset, tail_lines=tail_lines, bytes_max=7777)
        return await fleet.bus.ask(node_rpc_subject(NODE, "logs"), request, LogsReply)

    last = await ask(None, 1)
    assert last.text == "fake engine: ready\n"
    assert last.next_offset == 50_019
    assert not last.ended
    files = sorted((agent.state / "logs" / "i1").iterdir())
    assert len(files) <= 3
    text, offset = "", 0
    while True:
        reply = await ask(offset)
        assert reply.next_offset >= offset
        text, offset = text + reply.text, reply.next_offset
        if not reply.text:
            break
    assert offset == 50_019
    kept = text.splitlines()
    assert kept[-1] == "fake engine: ready"
    assert set(kept[1:-1]) == {"x" * 99}
    assert 20_000 <= len(text) <= 45_000
    assert ready.pid is not None
    os.kill(ready.pid, signal.SIGKILL)
    await fleet.phase("i1", "ready", restarts=1)
    assert (await ask(None, 1)).next_offset == 100_038
    await fleet.stop("i1", 2)
    await fleet.phase("i1", "stopped")
    assert (await ask(100_038)).ended


async def test_a_second_agent_says_who_holds_the_state(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    await fleet.next_heartbeat()
    second = subprocess.run(agent.command(), capture_output=True, text=True, check=False, timeout=20)
    assert second.returncode == 1
    assert agent.process is not None
    assert f"pid {agent.process.pid}" in second.stderr


async def test_stop_engines_needs_no_nats_and_the_next_agent_starts_them_again(
    fleet: Fleet, agent: AgentUnderTest, nats: NatsUnderTest
) -> None:
    agent.start()
    await fleet.start("a")
    await fleet.start("b", env={"FAKE_IGNORE_SIGTERM": "1"}, grace_seconds=60)
    a, b = await fleet.phase("a", "ready"), await fleet.phase("b", "ready")
    refused = agent.stop_engines()
    assert refused.returncode == 1
    assert "another agent" in refused.stderr
    agent.kill(signal.SIGTERM)
    nats.kill()
    began = time.monotonic()
    done = agent.stop_engines("--grace", "0.5")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 10
    assert len(done.stdout.splitlines()) == 2
    assert not alive(a.pid)
    assert not alive(b.pid)
    nats.start()
    agent.start()
    await until(lambda: (one := fleet.instance("a")) and one.pid not in (None, a.pid), "a, again")
    await fleet.phase("a", "ready", restarts=0)


async def test_a_wish_that_cannot_be_kept_is_a_warning_and_the_engine_runs(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    # A folder where the file is to be written, for a disk that is full: writing fails for root, too.
    in_the_way = agent.state / "instances" / "i1" / "desired.json.new"
    in_the_way.mkdir(parents=True)
    agent.start()
    await fleet.start("i1")
    await fleet.phase("i1", "ready")

    def warned() -> bool:
        node = fleet.node()
        return node is not None and "state_not_saved" in {warning.code for warning in node.warnings}

    await until(warned, "a warning")
    in_the_way.rmdir()
    await until(lambda: not warned(), "no warning")
    assert (agent.state / "instances" / "i1" / "desired.json").exists()


async def test_the_spare_runner_ends_with_its_agent(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    await fleet.start("i1")
    await fleet.phase("i1", "ready")

    def runners() -> set[int]:
        mine = str(agent.state / "runner.pyc")
        return {
            found.pid for found in psutil.process_iter(["cmdline"]) if mine in (found.info["cmdline"] or [])
        }

    used = agent.record("i1")["runner_pid"]
    await until(lambda: runners() > {used}, "a spare")
    agent.kill()
    await until(lambda: runners() == {used}, "the spare's end")


async def test_an_engine_outlives_a_full_disk(agent: AgentUnderTest, folder: Path) -> None:
    """A file size limit of the runner stands for the disk: its writes fail in the same way."""
    agent.state.mkdir()
    script = folder / "limited.py"
    script.write_text(
        "import resource, sys, os\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    port = free_port()
    told = {
        "name": "fake",
        "argv": [sys.executable, "-S", str(FAKE), "--port", str(port)],
        "env": {"FAKE_PRINT_BYTES": "200000", "PATH": os.environ["PATH"]},
        "cwd": "/",
        "run": "full-disk",
        "log_dir": str(folder),
        "log_file_bytes_max": 10_000_000,
        "log_files_max": 2,
        "grace_seconds": 1.0,
        "record": str(folder / "run.json"),
        "head": '{"a": 1',
    }
    words = [sys.executable, "-S", str(script), sys.executable, "-I", "-S", runner.__file__]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as stdin, process.stdout as stdout:
        stdin.write(marshal.dumps(told))
        stdin.close()
        assert stdout.readline().startswith(b"ok ")

    def answers() -> bool:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", port)) == 0

    try:
        written = folder / f"{0:020d}.log"
        await until(lambda: written.exists() and written.stat().st_size == 40_000, "the disk full")
        await until(answers, "the engine up")
    finally:
        process.terminate()
        process.wait(10)
    ended = json.loads((folder / "run.json").read_text())
    assert (ended["status"], ended["signal"], ended["asked"]) == (0, None, True)
