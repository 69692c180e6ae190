"""Who may say and hear what, as a real NATS enforces it."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
from cortex_shared.bus import Bus, Mirror
from cortex_shared.contracts import commands, events, observed, telemetry
from cortex_shared.contracts.commands import Stop, command_subject, node_subjects
from cortex_shared.contracts.events import Event, event_subject
from cortex_shared.contracts.rpc import SecretsReply, SecretsRequest, node_rpc_subject, secrets_subject
from cortex_shared.contracts.verdicts import BUCKET as VERDICTS
from cortex_shared.errors import Unavailable
from nats.aio.msg import Msg

from tests.integration.shared.conftest import bus_of, tasks, until
from tests.servers import ServersUnderTest
from tests.unit.monitor.fleet import WALL, node


def stop(name: str) -> Stop:
    return Stop(fleet="f", node=name, instance="i", generation=1)


def event() -> Event:
    return Event(id="e", at=WALL, kind="node.tested", message="")


@pytest.fixture
async def buses(secured_servers: ServersUnderTest) -> tuple[Bus, Bus]:
    """A service's bus and that of node `n1`; run both."""
    service = bus_of(secured_servers, credentials=secured_servers.credentials("api"))
    path = secured_servers.credentials("n1", role="node")
    return service, bus_of(secured_servers, owns_streams=False, credentials=path)


async def connected(*buses: Bus) -> None:
    for bus in buses:
        async with bus.session():
            pass


async def test_a_node_does_its_own_work(buses: tuple[Bus, Bus]) -> None:
    service, agent = buses
    mirror = Mirror(agent, commands.STREAM, node_subjects("n1"))

    async def secrets(request: SecretsRequest, subject: str) -> SecretsReply:
        return SecretsReply(values={"who": request.node})

    async with tasks(
        service.run,
        agent.run,
        mirror.run,
        lambda: service.answer(secrets_subject("*"), SecretsRequest, secrets),
    ):
        await connected(service, agent)
        await service.append(command_subject("n1", "i"), stop("n1"))
        await service.append(command_subject("n2", "i"), stop("n2"))
        await until(lambda: list(mirror.entries) == [command_subject("n1", "i")])
        await agent.put(observed.BUCKET, "n1", node("n1", 1))
        await agent.append(event_subject("node", "n1"), event())
        await agent.publish(telemetry.telemetry_subject("n1"), event())
        request = SecretsRequest(node="n1", instance="i", names=[])
        answered: SecretsReply | None = None
        with anyio.fail_after(5):
            while answered is None:
                try:
                    answered = await agent.ask(secrets_subject("n1"), request, SecretsReply)
                except Unavailable:
                    await anyio.sleep(0.02)
        assert answered.values == {"who": "n1"}


async def test_a_node_cannot_write_what_is_not_its_own(buses: tuple[Bus, Bus]) -> None:
    service, agent = buses
    forbidden: dict[str, Callable[[], Awaitable[object]]] = {
        "another's state": lambda: agent.put(observed.BUCKET, "n2", node("n2", 1)),
        "a verdict": lambda: agent.put(VERDICTS, "n1", event()),
        "a command to another": lambda: agent.append(command_subject("n2", "i"), stop("n2")),
        "a command to itself": lambda: agent.append(command_subject("n1", "i"), stop("n1")),
        "another's event": lambda: agent.append(event_subject("node", "n2"), event()),
        "an event of the API": lambda: agent.append(event_subject("api", "a"), event()),
        "a purge": lambda: agent.purge(commands.STREAM, node_subjects("n2")),
        "reading another's state": lambda: agent.get(observed.BUCKET, "n2"),
        "another's secrets": lambda: agent.ask(
            secrets_subject("n2"),
            SecretsRequest(node="n2", instance="i", names=[]),
            SecretsReply,
            timeout_seconds=0.5,
        ),
    }
    async with tasks(service.run, agent.run):
        await connected(service, agent)
        before = await stored(service)
        allowed: list[str] = []

        async def attempt(what: str) -> None:
            try:
                await forbidden[what]()
            except Unavailable:
                return
            allowed.append(what)

        # Together, because each waits in vain for an answer.
        async with anyio.create_task_group() as group:
            for what in forbidden:
                group.start_soon(attempt, what)
        assert allowed == []
        assert await stored(service) == before


async def stored(bus: Bus) -> dict[str, int]:
    """Messages by stream."""
    names = (commands.STREAM, events.STREAM, "KV_" + observed.BUCKET, "KV_" + VERDICTS)
    return {name: (await bus.now().js.stream_info(name)).state.messages for name in names}


async def test_a_node_cannot_hear_another(buses: tuple[Bus, Bus]) -> None:
    service, agent = buses
    heard: list[str] = []

    async def hear(message: Msg) -> None:
        heard.append(message.subject)

    foreign = [node_rpc_subject("n2", "logs"), "cortex.v1.commands.n2.*", "_INBOX_n2.>", ">"]
    async with tasks(service.run, agent.run):
        await connected(service, agent)
        client = agent.now().nc
        for subject in foreign:
            await client.subscribe(subject, cb=hear)
        await client.subscribe(node_rpc_subject("n1", "logs"), cb=hear)
        await client.flush()
        with anyio.fail_after(20):
            while not heard:  # a message to a subscription of this moment may go to nobody
                for name in ("n2", "n1"):
                    await service.publish(node_rpc_subject(name, "logs"), event())
                await anyio.sleep(0.2)
        assert {*heard} == {node_rpc_subject("n1", "logs")}


async def test_a_node_cannot_follow_anothers_commands(buses: tuple[Bus, Bus]) -> None:
    service, agent = buses
    foreign = Mirror(agent, commands.STREAM, node_subjects("n2"))
    everything = Mirror(agent, commands.STREAM, commands.SUBJECTS)
    own = Mirror(agent, commands.STREAM, node_subjects("n1"))
    async with tasks(service.run, agent.run, foreign.run, everything.run, own.run):
        await connected(service, agent)
        await service.append(command_subject("n1", "j"), stop("n1"))
        await service.append(command_subject("n2", "j"), stop("n2"))
        await until(lambda: command_subject("n1", "j") in own.entries)
        await anyio.sleep(3.5)  # longer than a refused request waits
        assert not foreign.synced
        assert not everything.synced
        assert foreign.entries == everything.entries == {}
