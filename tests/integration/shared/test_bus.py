"""Bus and Mirror on a real NATS that is killed, emptied and frozen."""

import os
import signal
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from cortex_shared.bus import Bus, Delivery, Mirror
from cortex_shared.bus.streams import bucket_stream, bucket_subject
from cortex_shared.contracts.base import Message
from cortex_shared.contracts.events import STREAM as EVENTS
from cortex_shared.contracts.events import Event, event_subject
from cortex_shared.contracts.rpc import LogsReply, LogsRequest
from cortex_shared.contracts.verdicts import BUCKET, NodeVerdict
from cortex_shared.errors import Conflict, InvalidInput, NotFound, Unavailable
from cortex_shared.settings import NatsSettings
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from tests.integration.shared.conftest import bus_of, tasks, until
from tests.servers import ServersUnderTest
from tests.unit.monitor.fleet import WALL


def verdict(node: str, *evidence: str) -> NodeVerdict:
    return NodeVerdict(node=node, verdict="live", since=WALL, evidence=list(evidence))


def event(name: str) -> Event:
    return Event(id=name, at=WALL, kind="test.happened", message=name)


async def put(bus: Bus, node: str, *evidence: str) -> None:
    """Put a verdict as soon as NATS is there."""
    await patiently(lambda: bus.put(BUCKET, node, verdict(node, *evidence)))


async def patiently(call: Callable[[], Awaitable[object]]) -> None:
    """Try again while the bus is unavailable."""
    with anyio.fail_after(20):
        while True:
            try:
                await call()
            except Unavailable:
                await anyio.sleep(0.05)
            else:
                return


@contextmanager
def frozen(servers: ServersUnderTest, name: str) -> Generator[None]:
    """The server is stopped in its tracks: connections live, nobody answers."""
    pid = servers.pid(name)
    os.kill(pid, signal.SIGSTOP)
    stopped = Path(f"/proc/{pid}/stat")
    while stopped.read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)  # the signal only asks
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Following:
    """A mirror of the verdicts' bucket, and what it said."""

    def __init__(self, bus: Bus) -> None:
        self.mirror = Mirror.of_bucket(bus, BUCKET)
        self.told: list[str | None] = []
        self.mirror.on_change(self.told.append)

    def holds(self) -> dict[str, list[str]]:
        """Node → evidence."""
        return {key: NodeVerdict.decode(entry.data).evidence for key, entry in self.mirror.entries.items()}


async def test_a_mirror_holds_the_newest_of_each_key(bus: Bus) -> None:
    await put(bus, "a", "1")
    await put(bus, "a", "2")
    following = Following(bus)
    async with tasks(following.mirror.run):
        await following.mirror.wait_synced()
        assert following.holds() == {"a": ["2"]}
        assert following.told == [None]
        await put(bus, "b", "1")
        await put(bus, "a", "3")
        await until(lambda: following.told == [None, "b", "a"])
        assert following.holds() == {"a": ["3"], "b": ["1"]}


async def test_a_mirror_of_an_empty_bucket_is_synced(bus: Bus) -> None:
    following = Following(bus)
    async with tasks(following.mirror.run):
        with anyio.fail_after(5):
            await following.mirror.wait_synced()
        assert following.mirror.entries == {}


async def test_a_deleted_key_leaves_the_mirror(bus: Bus) -> None:
    following = Following(bus)
    async with tasks(following.mirror.run):
        await put(bus, "a")
        await until(lambda: "a" in following.mirror.entries)
        await bus.now().js.publish(bucket_subject(BUCKET, "a"), b"", headers={"KV-Operation": "DEL"})
        await until(lambda: "a" not in following.mirror.entries)
        assert await bus.get(BUCKET, "a") is None


async def test_a_purged_subject_is_gone_for_those_who_read_anew(bus: Bus) -> None:
    await put(bus, "a")
    await put(bus, "b")
    await bus.purge(bucket_stream(BUCKET), bucket_subject(BUCKET, "a"))
    following = Following(bus)
    async with tasks(following.mirror.run):
        await following.mirror.wait_synced()
        assert following.holds() == {"b": []}
    assert await bus.get(BUCKET, "a") is None


async def test_a_mirror_outlives_a_killed_server(servers: ServersUnderTest, bus: Bus) -> None:
    following = Following(bus)
    async with tasks(following.mirror.run):
        await put(bus, "a", "1")
        await until(lambda: following.holds() == {"a": ["1"]})
        servers.kill("nats")
        await until(lambda: not following.mirror.synced)
        assert following.holds() == {"a": ["1"]}, "what is known stays while nobody can be asked"
        await put(bus, "a", "2")
        await until(lambda: following.mirror.synced and following.holds() == {"a": ["2"]})


async def test_a_mirror_of_an_emptied_server_is_empty_and_says_so(
    servers: ServersUnderTest, bus: Bus
) -> None:
    created: list[bool] = []
    bus.on_connect(created.append)
    following = Following(bus)
    async with tasks(following.mirror.run):
        await put(bus, "a", "1")
        await until(lambda: following.holds() == {"a": ["1"]})
        following.told.clear()
        await servers.empty("nats")
        await until(lambda: None in following.told)
        assert following.holds() == {}
        assert created == [True], "streams were made anew"
        await put(bus, "b")
        await until(lambda: following.holds() == {"b": []})


async def test_a_frozen_server_is_noticed_and_its_thaw_too(servers: ServersUnderTest, bus: Bus) -> None:
    following = Following(bus)
    async with tasks(following.mirror.run):
        await put(bus, "a", "1")
        await until(lambda: following.holds() == {"a": ["1"]})
        with frozen(servers, "nats"):
            with pytest.raises(Unavailable):
                await bus.put(BUCKET, "a", verdict("a", "2"))
            with pytest.raises(Unavailable):
                await bus.get(BUCKET, "a")
        await put(bus, "a", "3")
        await until(lambda: following.mirror.synced and following.holds() == {"a": ["3"]})


async def test_a_mirror_that_missed_messages_reads_anew(bus: Bus) -> None:
    following = Following(bus)
    async with tasks(following.mirror.run):
        await put(bus, "a", "1")
        await until(lambda: following.holds() == {"a": ["1"]})
        following.told.clear()
        # Its consumer vanishes on the server, as after a failover: only silence can tell.
        js = bus.now().js
        for consumer in await js.consumers_info(bucket_stream(BUCKET)):
            await js.delete_consumer(bucket_stream(BUCKET), consumer.name)
        await put(bus, "a", "2")
        await until(lambda: following.holds() == {"a": ["2"]}, seconds=30)
        assert None in following.told


async def test_writes_are_compared_and_set(bus: Bus) -> None:
    first = await bus.put(BUCKET, "a", verdict("a", "1"), expected_sequence=0)
    with pytest.raises(Conflict):
        await bus.put(BUCKET, "a", verdict("a", "2"), expected_sequence=0)
    second = await bus.put(BUCKET, "a", verdict("a", "2"), expected_sequence=first)
    with pytest.raises(Conflict):
        await bus.put(BUCKET, "a", verdict("a", "3"), expected_sequence=first)
    found = await bus.get(BUCKET, "a")
    assert found is not None
    assert found[1] == second
    assert NodeVerdict.decode(found[0]).evidence == ["2"]


async def test_a_repeated_message_id_is_stored_once(bus: Bus) -> None:
    sequences = {await bus.append(event_subject("test", "x"), event("e"), message_id="e") for _ in range(3)}
    assert len(sequences) == 1
    assert (await bus.now().js.stream_info(EVENTS)).state.messages == 1


async def test_everything_is_unavailable_while_nats_is_away(unused_tcp_port: int) -> None:
    away = Bus(NatsSettings(url=f"nats://user:hunter2@127.0.0.1:{unused_tcp_port}"), name="away")
    async with tasks(away.run):
        await anyio.sleep(0.3)
        assert not away.connected
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: away.publish("x", event("e")),
            lambda: away.append("x", event("e")),
            lambda: away.get(BUCKET, "a"),
            lambda: away.purge("S", "x"),
            lambda: away.ask("x", event("e"), Event),
        ]
        for call in calls:
            with pytest.raises(Unavailable) as caught:
                await call()
            assert caught.value.remedy
            assert "hunter2" not in str(caught.value.body())


async def test_a_consumer_does_not_wait_for_a_full_batch(bus: Bus) -> None:
    seen: list[str] = []

    async def handle(deliveries: list[Delivery]) -> None:
        seen.extend(Event.decode(delivery.data).id for delivery in deliveries)

    async with tasks(lambda: bus.consume(EVENTS, "alone", handle)):
        for number in range(3):
            # The request for the next message is open, and the server has nothing.
            with anyio.fail_after(10):
                while not await _asks(bus, "alone"):
                    await anyio.sleep(0.02)
            await bus.append(event_subject("test", "x"), event(f"single {number}"))
            await until(lambda: len(seen) > number, seconds=5)  # noqa: B023 (awaited at once)


async def _asks(bus: Bus, durable: str) -> bool:
    try:
        info = await bus.now().js.consumer_info(EVENTS, durable)
    except NotFoundError:
        return False
    return bool(info.num_waiting)


async def test_a_consumer_gets_everything_at_least_once_though_its_handler_fails(
    servers: ServersUnderTest, bus: Bus
) -> None:
    seen: list[str] = []
    failures = 0

    async def handle(deliveries: list[Delivery]) -> None:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise Unavailable("not now", code="test.away")
        seen.extend(Event.decode(delivery.data).id for delivery in deliveries)

    async with tasks(lambda: bus.consume(EVENTS, "test", handle)):
        for number in range(50):
            await bus.append(event_subject("test", "x"), event(str(number)))
        await until(lambda: set(seen) == {str(number) for number in range(50)}, seconds=30)
        assert failures == 2
        servers.kill("nats")
        await patiently(lambda: bus.append(event_subject("test", "x"), event("after")))
        await until(lambda: "after" in seen, seconds=30)
    seen.clear()
    async with tasks(lambda: bus.consume(EVENTS, "test", handle)):
        await bus.append(event_subject("test", "x"), event("later"))
        await until(lambda: seen[-1:] == ["later"])
        assert "0" not in seen, "what was acknowledged does not come again"


async def test_questions_are_answered_and_errors_arrive_as_they_were(bus: Bus) -> None:
    async def answer(request: LogsRequest, subject: str) -> Message:
        if request.instance == "unknown":
            raise NotFound("no such instance", code="instance.unknown", field="instance", remedy="look")
        return LogsReply(text=subject, next_offset=3, ended=True)

    async with tasks(lambda: bus.answer("test.rpc.*", LogsRequest, answer)):
        reply: LogsReply | None = None
        with anyio.fail_after(5):
            while reply is None:
                try:
                    reply = await bus.ask("test.rpc.logs", LogsRequest(instance="i"), LogsReply)
                except Unavailable:  # not subscribed yet
                    await anyio.sleep(0.02)
        assert reply.text == "test.rpc.logs"
        with pytest.raises(NotFound) as caught:
            await bus.ask("test.rpc.logs", LogsRequest(instance="unknown"), LogsReply)
        assert (caught.value.code, caught.value.field) == ("instance.unknown", "instance")
        assert caught.value.remedy == "look"
        with pytest.raises(InvalidInput):
            await bus.ask("test.rpc.logs", event("not a request"), LogsReply)
    with pytest.raises(Unavailable):
        await bus.ask("test.rpc.logs", LogsRequest(instance="i"), LogsReply, timeout_seconds=0.5)


async def test_a_listener_hears_again_after_the_server_was_emptied(
    servers: ServersUnderTest, bus: Bus
) -> None:
    heard: list[bytes] = []

    async def hear(message: Msg) -> None:
        heard.append(message.data)

    async def say() -> None:
        with anyio.move_on_after(20):
            while not heard:
                await patiently(lambda: bus.publish("test.say", event("e")))
                await anyio.sleep(0.05)

    async with tasks(lambda: bus.listen("test.say", hear)):
        await say()
        assert heard
        heard.clear()
        await servers.empty("nats")
        await say()
        assert heard


async def test_a_bus_that_owns_no_streams_waits_for_them(servers: ServersUnderTest) -> None:
    await servers.fresh_nats()
    guest = bus_of(servers, owns_streams=False)
    following = Following(guest)
    async with tasks(guest.run, following.mirror.run):
        async with guest.session():
            pass
        with pytest.raises(Unavailable):
            await guest.put(BUCKET, "a", verdict("a"))
        owner = bus_of(servers)
        async with tasks(owner.run):
            await put(guest, "a")
            await until(lambda: following.holds() == {"a": []})


@pytest.mark.parametrize("told", [True, False])
async def test_a_client_that_does_not_say_that_it_closed_is_given_up(
    servers: ServersUnderTest, bus: Bus, *, told: bool
) -> None:
    # Seen of nats-py 2.16 in a process that had been held up: it failed while it closed.
    session = bus.now()
    setattr(session.nc, "_disconnected_cb", None)  # noqa: B010 (private)
    setattr(session.nc, "_closed_cb", None)  # noqa: B010 (private)
    if not told:

        async def silent(_: Exception) -> None: ...

        setattr(session.nc, "_error_cb", silent)  # noqa: B010 (private)
    servers.kill("nats")
    with anyio.fail_after(20):
        await session.lost.wait()
    await servers.wait("nats")
    await put(bus, "n1")
