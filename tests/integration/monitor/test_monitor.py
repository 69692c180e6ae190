"""The monitor as a process, on real NATS and Redis, through every absence of either."""

import os
import signal
import time
from collections.abc import Callable

import anyio
import pytest
from cortex_shared.bus import Mirror
from cortex_shared.contracts import observed
from cortex_shared.contracts.events import STREAM as EVENTS
from cortex_shared.contracts.events import SUBJECTS, Event
from cortex_shared.contracts.routes import RoutingTable

from tests.integration.monitor.conftest import Bench
from tests.unit.monitor.fleet import evidence, instance, node, wanted


def serving(*instances: str) -> Callable[[RoutingTable], bool]:
    """Whether the only route has just these endpoints."""

    def holds(table: RoutingTable) -> bool:
        return [[e.instance for e in route.endpoints] for route in table.routes] == [list(instances)]

    return holds


async def begin(bench: Bench, **settings: str) -> RoutingTable:
    """A monitor with one ready instance in the table."""
    bench.start(**settings)
    await bench.want(wanted())
    await bench.hear(node("n1", 1, instance("a")))
    return await bench.table(serving("a"))


async def test_ready_is_routed_and_not_ready_is_not(bench: Bench) -> None:
    table = await begin(bench)
    assert (table.fleet, table.epoch, table.routes[0].state) == ("fleet-1", 1, "running")
    await bench.hear(node("n1", 2, instance("a", "unready")))
    table = await bench.table(serving())
    assert table.routes[0].state == "degraded"
    await bench.want(epoch=2)
    await bench.table(lambda found: found.routes == [])
    assert (await bench.verdict("n1", "live")).node == "n1"


async def test_heartbeats_write_no_table(bench: Bench) -> None:
    await begin(bench)
    stands = await bench.store.version()
    for beat in range(2, 12):
        await bench.hear(node("n1", beat, instance("a")))
    # A change that follows them in the same stream proves that they have been seen.
    await bench.hear(node("n1", 12, instance("a"), instance("b")))
    table = await bench.table(serving("a", "b"))
    assert stands is not None
    assert (table.term, table.version) == (stands[0], stands[1] + 1)


async def test_an_emptied_redis_gets_its_table_again(bench: Bench) -> None:
    before = await begin(bench)
    await bench.servers.flush_redis()
    after = await bench.table(seconds=3)
    assert after.routes == before.routes
    # Gateways pass over a table whose number they have seen.
    assert (after.term, after.version) > (before.term, before.version)
    await bench.servers.empty("redis")
    assert (await bench.table(seconds=5)).routes == before.routes


async def test_a_node_speaks_for_itself_only(bench: Bench) -> None:
    await begin(bench)
    await bench.put(observed.BUCKET, "n2", node("n1", 9, instance("evil")))
    # What follows in the same stream proves that it has been seen.
    await bench.hear(node("n3", 1, instance("b")))
    await bench.table(serving("a", "b"))


async def test_an_emptied_nats_removes_nothing(bench: Bench) -> None:
    await begin(bench)
    await bench.hear(node("n2", 1, instance("b")))
    before = await bench.table(serving("a", "b"))
    await bench.servers.empty("nats")
    # The monitor's own words come back into the new store: it has been through the loss.
    await bench.verdict("n1", "live")
    await bench.verdict("n2", "live")
    await bench.hear(node("n2", 2, instance("b"), instance("c")))
    after = await bench.table(serving("a", "b", "c"))
    assert after.term == before.term
    await bench.want(wanted(), epoch=1)
    await bench.hear(node("n1", 2))
    await bench.table(serving("b", "c"))


async def test_a_restarted_monitor_with_empty_nats_keeps_the_table_untouched(bench: Bench) -> None:
    before = await begin(bench)
    for process in bench.processes:
        process.kill()
        process.wait()
    await bench.servers.empty("nats")
    bench.start()
    await bench.lease()
    await bench.hear(node("n9", 1, instance("z", model_id=9)))
    await bench.verdict("n9", "live")
    assert await bench.store.read() == before
    # It follows what comes: the node is heard again, with more.
    await bench.hear(node("n1", 2, instance("a"), instance("b")))
    await bench.table(serving("a", "b"))


async def test_adopted_endpoints_that_nobody_vouches_for_go_after_their_time(bench: Bench) -> None:
    before = await begin(bench)
    for process in bench.processes:
        process.kill()
        process.wait()
    await bench.servers.empty("nats")
    bench.start(LIVENESS__ADOPT_SECONDS="4", LIVENESS__ANSWER_SECONDS="2")
    began = time.monotonic()
    while time.monotonic() - began < 6:
        await bench.tell(evidence("a", successes=1))
        await anyio.sleep(0.5)
    assert serving("a")(await bench.table())
    table = await bench.table(serving())
    assert table.term > before.term


async def test_the_other_monitor_takes_over_within_three_seconds(bench: Bench) -> None:
    first = bench.start()
    lease = await bench.lease()
    await bench.want(wanted())
    await bench.hear(node("n1", 1, instance("a")))
    table = await bench.table(serving("a"))
    second = bench.start()
    await bench.ready(second)
    first.kill()
    began = time.monotonic()
    other = await bench.lease(not_held_by=lease.holder)
    took = time.monotonic() - began
    print(f"taken over after {took:.2f} s")
    assert took < 6
    assert other.term > lease.term
    await bench.hear(node("n1", 2, instance("a"), instance("b")))
    after = await bench.table(serving("a", "b"))
    assert (after.term, after.version) > (table.term, table.version)
    # One that leaves in order says so, and the next need not wait for the lease to run out.
    third = bench.start(LEASE__EXPIRE_SECONDS="60")
    await bench.ready(third)
    second.send_signal(signal.SIGTERM)
    assert second.wait(10) == 0
    last = await bench.lease(not_held_by=other.holder)
    assert last.term > other.term


async def test_a_deposed_monitor_changes_nothing_when_it_wakes(bench: Bench) -> None:
    first = bench.start()
    lease = await bench.lease()
    await bench.want(wanted())
    await bench.hear(node("n1", 1, instance("a")))
    await bench.table(serving("a"))
    second = bench.start()
    await bench.ready(second)
    first.send_signal(signal.SIGSTOP)
    other = await bench.lease(not_held_by=lease.holder)
    await bench.hear(node("n1", 2, instance("a"), instance("b")))
    await bench.table(serving("a", "b"))
    first.send_signal(signal.SIGCONT)
    await bench.hear(node("n1", 3, instance("b")))
    table = await bench.table(serving("b"))
    assert table.term == other.term
    assert (await bench.lease()).holder == other.holder
    assert first.poll() is None


async def test_a_silent_node_is_lost_and_its_return_is_told(bench: Bench) -> None:
    events = Mirror(bench.bus, EVENTS, SUBJECTS)
    kinds: list[str] = []
    back = anyio.Event()

    def noticed(key: str | None) -> None:
        if key is not None:
            kinds.append(Event.decode(events.entries[key].data).kind)
        if "node.live" in kinds:
            back.set()

    events.on_change(noticed)
    async with anyio.create_task_group() as group:
        group.start_soon(events.run)
        await events.wait_synced()
        await begin(bench, LIVENESS__LOST_SECONDS="2")
        await bench.hear(node("n1", 2, instance("a"), heartbeat_seconds=0.1))
        lost = await bench.verdict("n1", "lost")
        await bench.table(serving())
        assert lost.evidence == ["no heart-beat"]
        await bench.hear(node("n1", 3, instance("a")))
        await bench.table(serving("a"))
        await bench.verdict("n1", "live")
        with anyio.fail_after(5):
            await back.wait()
        group.cancel_scope.cancel()
    of_nodes = [kind for kind in kinds if kind.startswith("node.")]
    assert of_nodes[-3:] == ["node.silent", "node.lost", "node.live"]
    assert "route.changed" in kinds


async def test_a_node_whose_agent_is_away_is_not_lost_while_its_engine_accepts_connections(
    bench: Bench,
) -> None:
    await begin(bench, LIVENESS__LOST_SECONDS="2", LIVENESS__ANSWER_SECONDS="4")
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        await bench.hear(node("n1", 2, instance("a", port=port), heartbeat_seconds=0.1))
        await bench.verdict("n1", "silent")
        await anyio.sleep(5)  # longer than lost_seconds, without traffic: nothing may happen
        verdict = await bench.verdict("n1", "silent")
        assert verdict.evidence == ["no heart-beat", "its engines accept connections"]
        assert serving("a")(await bench.table())
    await bench.verdict("n1", "lost")
    await bench.table(serving())


async def test_most_nodes_silent_at_once_are_frozen_and_stay_routed(bench: Bench) -> None:
    await begin(bench, LIVENESS__LOST_SECONDS="2")
    for beat in (2, 3):
        for name, engine in (("n1", "a"), ("n2", "b")):
            await bench.hear(node(name, beat, instance(engine), heartbeat_seconds=0.3))
    await bench.table(serving("a", "b"))
    await bench.verdict("n1", "frozen")
    await bench.verdict("n2", "frozen")
    await anyio.sleep(2.5)  # longer than lost_seconds: nothing may happen
    assert serving("a", "b")(await bench.table())


async def test_refused_connections_take_an_endpoint_out(bench: Bench) -> None:
    await begin(bench)
    await bench.hear(node("n1", 2, instance("a"), instance("b")))
    await bench.table(serving("a", "b"))
    await bench.tell(evidence("a", connect_failures=2))
    await bench.table(serving("b"), seconds=3)
    await bench.tell(evidence("b", connect_failures=2))
    await bench.hear(node("n1", 3, instance("a"), instance("b")))
    await bench.table(serving("a", "b"), seconds=3)


async def test_redis_away_is_waited_out(bench: Bench) -> None:
    before = await begin(bench)
    bench.servers.kill("redis")
    await bench.hear(node("n1", 2, instance("a"), instance("b")))
    after = await bench.table(serving("a", "b"))
    assert (after.term, after.version) > (before.term, before.version)


async def test_metrics_and_health_are_told(bench: Bench, unused_tcp_port: int) -> None:
    await begin(bench, HTTP__PORT=str(unused_tcp_port))
    status, text = await http_get(unused_tcp_port, "/metrics")
    assert status == 200
    for line in (
        'cortex_monitor_nodes{verdict="live"} 1.0',
        'cortex_monitor_instances{phase="ready"} 1.0',
        "cortex_monitor_routes 1.0",
        "cortex_monitor_endpoints 1.0",
        "cortex_monitor_lease_held 1.0",
        "cortex_monitor_frozen 0.0",
    ):
        assert line in text
    status, text = await http_get(unused_tcp_port, "/readyz")
    assert status == 200, text


async def http_get(port: int, path: str) -> tuple[int, str]:
    """Status and body."""
    stream = await anyio.connect_tcp("127.0.0.1", port)
    async with stream:
        await stream.send(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        data = b""
        try:
            while True:
                data += await stream.receive()
        except anyio.EndOfStream:
            pass
    head, _, body = data.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("name", ["nats", "redis"])
async def test_a_monitor_started_while_a_server_is_away_waits(bench: Bench, name: str) -> None:
    await bench.want(wanted())
    await bench.hear(node("n1", 1, instance("a")))
    pid = bench.servers.pid(name)
    os.kill(pid, signal.SIGSTOP)
    process = bench.start()
    await anyio.sleep(3)
    assert process.poll() is None
    os.kill(pid, signal.SIGCONT)
    await bench.table(serving("a"))
