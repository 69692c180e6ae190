"""Start, ready, stop; generations and manifests; nothing stops for want of a message."""

import os
import signal

import httpx
import psutil
from cortex_node_agent import probe
from cortex_shared.contracts.commands import command_subject

from tests.integration.node_agent.conftest import (
    NODE,
    AgentUnderTest,
    Fleet,
    NatsUnderTest,
    alive,
    until,
    until_true,
)


async def test_start_ready_stop_forget(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    await fleet.start("i1")
    ready = await fleet.phase("i1", "ready")
    assert ready.generation == 1
    assert ready.url == f"http://127.0.0.1:{ready.port}"
    assert ready.port is not None
    answer = await probe.get("127.0.0.1", ready.port, "/health", timeout_seconds=5)
    assert answer is not None
    assert answer.status == 200
    await fleet.stop("i1", 2, reason="asked by a test")
    stopped = await fleet.phase("i1", "stopped")
    assert stopped.generation == 2
    assert stopped.pid is None
    assert stopped.reason is not None
    assert stopped.reason.message == "asked by a test"
    assert not alive(ready.pid)
    await fleet.manifest(1)
    await until(lambda: fleet.instance("i1") is None, "i1 forgotten")
    await until(lambda: not (agent.state / "instances" / "i1").exists(), "its state removed")
    assert (agent.state / "logs" / "i1").is_dir()


async def test_phases_are_told_on_the_way(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    env = {"FAKE_LOAD_SECONDS": "1", "FAKE_PRINT": "fake: loading the model now"}
    await fleet.start("i1", env=env)
    await fleet.phase("i1", "loading")
    await fleet.phase("i1", "ready")


async def test_an_older_generation_does_nothing_and_a_newer_one_replaces(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    agent.start()
    await fleet.start("i1", 5)
    first = await fleet.phase("i1", "ready")
    await fleet.start("i1", 4, env={"FAKE_PRINT": "older"})
    await fleet.stop("i1", 3)
    await fleet.start("i2", 1)
    await fleet.phase("i2", "ready")
    same = fleet.instance("i1")
    assert same is not None
    assert (same.pid, same.phase) == (first.pid, "ready")
    await fleet.start("i1", 6, env={"FAKE_PRINT": "newer"})
    second = await fleet.phase("i1", "ready", generation=6)
    assert second.pid != first.pid
    assert second.port == first.port
    assert not alive(first.pid)


async def test_a_newer_generation_of_the_same_plan_keeps_the_engine(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    agent.start()
    await fleet.start("i1", 1)
    first = await fleet.phase("i1", "ready")
    await fleet.start("i1", 9)
    second = await fleet.phase("i1", "ready", generation=9)
    assert second.pid == first.pid


async def test_only_a_manifest_of_the_own_fleet_and_not_older_removes(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    agent.start()
    await fleet.start("i1")
    first = await fleet.phase("i1", "ready")
    await fleet.manifest(7, "i1")
    await until(lambda: (node := fleet.node()) and node.manifest_epochs.get("fleet-a") == 7, "epoch 7")
    await fleet.manifest(6)
    await fleet.manifest(99, fleet="fleet-b")
    await until(lambda: (node := fleet.node()) and node.manifest_epochs.get("fleet-b") == 99, "epoch 99")
    assert alive(first.pid)
    await fleet.manifest(7)
    await until(lambda: fleet.instance("i1") is None, "i1 removed")
    assert not alive(first.pid)


async def test_a_start_from_before_the_manifest_without_it_is_not_applied(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    await fleet.start("old")
    await fleet.manifest(1, "other")
    await fleet.start("new")
    agent.start()
    await fleet.phase("new", "ready")
    assert fleet.instance("old") is None


async def test_unreadable_commands_are_ignored(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    await fleet.bus.now().js.publish(command_subject(NODE, "bad"), b'{"type": "cortex.whatever.v9"}')
    await fleet.bus.now().js.publish(command_subject(NODE, "worse"), b"\xff\xfe")
    message = fleet.start_message("x/y")
    await fleet.bus.append(command_subject(NODE, "x/y"), message)
    await fleet.start("good")
    await fleet.phase("good", "ready")
    node = fleet.node()
    assert node is not None
    assert [one.instance for one in node.instances] == ["good"]


async def test_nats_away_and_empty_stops_nothing(
    fleet: Fleet, agent: AgentUnderTest, nats: NatsUnderTest
) -> None:
    agent.start()
    await fleet.start("i1")
    await fleet.manifest(1, "i1")
    ready = await fleet.phase("i1", "ready")
    nats.kill(empty=True)
    # An engine that dies meanwhile comes back, without NATS.
    assert ready.pid is not None
    os.kill(ready.pid, signal.SIGKILL)
    await until(lambda: agent.record("i1").get("pid") not in (None, ready.pid), "a new engine")
    nats.start()
    again = await fleet.phase("i1", "ready", restarts=1)
    assert alive(again.pid)
    await fleet.next_heartbeat()
    await fleet.phase("i1", "ready", pid=again.pid)


async def test_an_agent_without_nats_brings_back_what_died_and_keeps_what_runs(
    fleet: Fleet, agent: AgentUnderTest, nats: NatsUnderTest
) -> None:
    agent.start()
    await fleet.start("kept")
    await fleet.start("lost")
    kept, lost = await fleet.phase("kept", "ready"), await fleet.phase("lost", "ready")
    await until(lambda: (agent.state / "instances" / "lost" / "desired.json").exists(), "the wish on disk")
    nats.kill()
    agent.kill()
    assert lost.pid is not None
    os.kill(lost.pid, signal.SIGKILL)
    await until(lambda: agent.record("lost").get("ended_at"), "the runner's last word")
    agent.start()
    fresh = await until(
        lambda: (pid := agent.record("lost").get("pid")) not in (None, lost.pid) and pid, "a new engine"
    )
    nats.start()
    await fleet.phase("lost", "ready", pid=fresh)
    await fleet.next_heartbeat()
    await fleet.phase("kept", "ready", pid=kept.pid)


async def test_a_stop_drains_what_is_being_answered(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    await fleet.start("i1", env={"FAKE_TOKENS_PER_SECOND": "20"})
    ready = await fleet.phase("i1", "ready")
    asked: dict[str, object] = {"messages": [], "stream": True, "max_tokens": 25, "ignore_eos": True}
    async with (
        httpx.AsyncClient(timeout=20) as client,
        client.stream("POST", f"{ready.url}/v1/chat/completions", json=asked) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        await fleet.stop("i1", 2)
        await fleet.phase("i1", "stopping")
        rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    await fleet.phase("i1", "stopped")


async def test_a_stop_kills_what_ignores_it(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    env = {"FAKE_IGNORE_SIGTERM": "1", "FAKE_CHILDREN": "2", "FAKE_CHILDREN_SETSID": "1"}
    await fleet.start("i1", env=env, grace_seconds=0.3)
    ready = await fleet.phase("i1", "ready")
    children = [child.pid for child in psutil.Process(ready.pid).children()]
    assert len(children) == 2
    await fleet.stop("i1", 2)
    stopped = await fleet.phase("i1", "stopped")
    assert stopped.last_exit is not None
    assert stopped.last_exit.signal == signal.SIGKILL
    assert not any(alive(pid) for pid in children)


async def test_health_and_metrics(fleet: Fleet, agent: AgentUnderTest, nats: NatsUnderTest) -> None:
    agent.start()
    await fleet.start("i1")
    await fleet.phase("i1", "ready")

    async def status(path: str) -> tuple[int, str]:
        answer = await probe.get(
            "127.0.0.1", agent.http_port, path, timeout_seconds=5, body_bytes_max=100_000
        )
        assert answer is not None
        return answer.status, answer.body.decode()

    assert (await status("/livez"))[0] == 200
    assert (await status("/readyz"))[0] == 200
    assert "cortex_node_agent_engines_running 1.0" in (await status("/metrics"))[1]
    nats.kill()

    async def not_ready() -> bool:
        return (await status("/readyz"))[0] == 503

    await until_true(not_ready, "not ready without NATS")
    assert (await status("/livez"))[0] == 200
