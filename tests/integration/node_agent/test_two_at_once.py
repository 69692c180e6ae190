"""What dies or stalls between two steps of a start, clocks that are set, and words that are too long."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
from cortex_shared.bus import reader
from cortex_shared.contracts.events import STREAM, SUBJECTS, Event
from cortex_shared.contracts.plan import ModelFile
from cortex_shared.contracts.rpc import LogsReply, LogsRequest, node_rpc_subject

from tests.integration.node_agent.conftest import NODE, AgentUnderTest, Fleet, alive, until
from tests.integration.node_agent.processes import engines, runners


async def test_a_runner_that_reads_its_orders_late_starts_no_second_engine(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    agent.start()
    await until(lambda: runners(agent), "a spare runner")
    (stalled,) = runners(agent)
    os.kill(stalled, signal.SIGSTOP)
    try:
        await fleet.start("i1")
        await until(lambda: len(runners(agent)) == 2, "the orders given, and the next spare")
        agent.kill()
        agent.start()
        ready = await fleet.phase("i1", "ready")
        record = agent.record("i1")
    finally:
        os.kill(stalled, signal.SIGCONT)
    await until(lambda: not alive(stalled), "the late runner's end")
    assert agent.record("i1") == record
    assert engines(agent) == {"i1": [ready.pid]}


async def test_an_engine_is_kept_that_was_found_before_its_runner_had_started_it(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    agent.start()
    await fleet.start("i1", env={"FAKE_LOAD_SECONDS": "4"})
    starting = await until(lambda: one if (one := fleet.instance("i1")) and one.pid else None, "an engine")
    agent.kill()
    path = agent.state / "instances" / "i1" / "run.json"
    whole = path.read_text()
    # As it is between the runner's two writes.
    halved = {name: value for name, value in json.loads(whole).items() if name not in ("pid", "ticks")}
    _replace(path, json.dumps(halved | {"started_at": 0}))
    before = fleet.node()
    agent.start()
    await until(lambda: agent.log.read_text().count("agent.started") == 2, "the second agent")
    with suppress(AssertionError):  # one that does not wait for the rest of the record reports at once
        await until(lambda: fleet.node() != before, "a report", 1)
    _replace(path, whole)
    await until(lambda: (node := fleet.node()) and node != before and node.instances, "a report")
    assert (await fleet.phase("i1", "ready", restarts=0)).pid == starting.pid


async def test_setting_the_clock_ends_no_engine_that_loads(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.start()
    await fleet.start("i1", env={"FAKE_LOAD_SECONDS": "4"}, start_seconds_max=60)
    starting = await until(lambda: one if (one := fleet.instance("i1")) and one.pid else None, "an engine")
    agent.kill()
    path = agent.state / "instances" / "i1" / "run.json"
    record = json.loads(path.read_text())
    # To an agent whose clock was set forward it looks like this.
    _replace(path, json.dumps(record | {"started_at": record["started_at"] - 86_400}))
    agent.start()
    assert (await fleet.phase("i1", "ready", restarts=0)).pid == starting.pid


async def test_a_failure_that_stays_is_told_once(fleet: Fleet, agent: AgentUnderTest) -> None:
    agent.env["CORTEX_AGENT__FILE_RETRY_SECONDS"] = "0.1"
    agent.start()
    await fleet.start("i1", files=[ModelFile(path="missing.gguf", format="gguf")])
    tries: set[object] = set()

    def tried() -> bool:
        found = fleet.instance("i1")
        if found is not None and found.next_try_at is not None:
            tries.add(found.next_try_at)
        return len(tries) >= 4

    await until(tried, "four tries")
    _, last = await reader.bounds(fleet.bus, STREAM)
    events = await reader.read(fleet.bus, STREAM, SUBJECTS, first=1, last=last)
    kinds = [Event.decode(event.data).kind for event in events]
    assert kinds.count("instance.failed") == 1


async def test_a_log_full_of_control_characters_arrives_all_the_same(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    agent.start()
    await fleet.next_heartbeat()
    folder = agent.state / "logs" / "i1"
    folder.mkdir()
    (folder / f"{0:020d}.log").write_bytes(b"\x1b\0" * 200_000)
    offset = 0
    while offset < 400_000:
        request = LogsRequest(instance="i1", offset=offset, bytes_max=400_000)
        reply = await fleet.bus.ask(node_rpc_subject(NODE, "logs"), request, LogsReply)
        assert reply.next_offset > offset
        offset = reply.next_offset
    assert psutil.pid_exists(agent.process.pid if agent.process else 0)


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text(text)
    fresh.rename(path)
