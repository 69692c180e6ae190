"""A node for tests: says what an agent says on the bus, and answers what an agent is asked."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from cortex_shared.bus import Bus
from cortex_shared.contracts.commands import Start, Stop, decode_command, node_subjects
from cortex_shared.contracts.observed import (
    BUCKET,
    InstanceObserved,
    NodeObserved,
    Phase,
    ProgramObserved,
    Reason,
)
from cortex_shared.contracts.rpc import (
    InspectReply,
    InspectRequest,
    LogsReply,
    LogsRequest,
    node_rpc_subject,
)
from cortex_shared.settings import NatsSettings

_SAME = {"instance", "fleet", "generation", "plan_hash", "model_id", "model", "served_model_name"}


class NodeUnderTest:
    """Says what it is told to say. `starts` and `stops` are the commands that it got."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.bus = bus
        self.name = name
        self.started_at = datetime.now(UTC)
        self.starts: list[Start] = []
        self.stops: dict[str, Stop] = {}
        self.log = ""
        self.log_ended = False
        self.bad_paths: dict[str, Reason] = {}
        self.instances: dict[str, InstanceObserved] = {}
        self._heartbeat = 0

    async def beat(self, **changes: Any) -> None:
        """Say what it is and runs."""
        self._heartbeat += 1
        said: dict[str, Any] = {
            "node": self.name,
            "at": datetime.now(UTC),
            "heartbeat": self._heartbeat,
            "heartbeat_seconds": 5,
            "agent_version": "0.1.0",
            "agent_started_at": self.started_at,
            "boot_id": "boot",
            "address": "127.0.0.1",
            "cpus": 4,
            "memory_total_mib": 16_000,
            "memory_available_mib": 12_000,
            "labels": {"zone": "a"},
            "programs": [ProgramObserved(name="llama-server", runtime="process", target="/bin/true")],
            "model_roots": ["/models"],
            "instances": list(self.instances.values()),
            **changes,
        }
        await self.bus.put(BUCKET, self.name, NodeObserved.model_validate(said))

    async def run(self, start: Start, phase: Phase, **more: Any) -> None:
        """Say that the instance of a Start is in a phase."""
        now = datetime.now(UTC)
        self.instances[start.instance] = InstanceObserved(
            **start.model_dump(include=_SAME),
            name=start.plan.container_name,
            phase=phase,
            since=now,
            url="http://127.0.0.1:20000",
            port=20000,
            pid=4711,
            **more,
        )
        await self.beat()

    async def next_start(self, model_id: int, *, seconds: float = 10) -> Start:
        """The newest Start for a model, as soon as there is one."""
        async with asyncio.timeout(seconds):
            while True:
                for start in reversed(self.starts):
                    if start.model_id == model_id:
                        return start
                await asyncio.sleep(0.01)

    async def stopped(self, start: Start, *, seconds: float = 10) -> None:
        """Say that an instance has stopped, once it was told to."""
        async with asyncio.timeout(seconds):
            while start.instance not in self.stops:
                await asyncio.sleep(0.01)
        stop = self.stops[start.instance]
        await self.run(start.model_copy(update={"generation": stop.generation}), "stopped")

    async def answer_logs(self, request: LogsRequest, _subject: str) -> LogsReply:
        text = self.log
        if request.offset is None:
            lines = text.splitlines(keepends=True)
            shown = "".join(lines[len(lines) - request.tail_lines :] if request.tail_lines else [])
        else:
            shown = text[request.offset :]
        return LogsReply(text=shown, next_offset=len(text), ended=self.log_ended)

    async def answer_inspect(self, request: InspectRequest, _subject: str) -> InspectReply:
        return InspectReply(path=request.path, problem=self.bad_paths.get(request.path), size_bytes=1_000_000)


@asynccontextmanager
async def a_node(nats_url: str, name: str) -> AsyncGenerator[NodeUnderTest]:
    """A node that is heard of, and answers."""
    bus = Bus(NatsSettings(url=nats_url), name=f"test-{name}")
    node = NodeUnderTest(bus, name)

    async def commands() -> None:
        async with bus.session() as session:
            subscription = await session.nc.subscribe(node_subjects(name))
            async for message in subscription.messages:
                command = decode_command(message.data)
                if isinstance(command, Start):
                    node.starts.append(command)
                elif isinstance(command, Stop):
                    node.stops[command.instance] = command

    tasks = [
        asyncio.create_task(coroutine)
        for coroutine in (
            bus.run(),
            commands(),
            bus.answer(node_rpc_subject(name, "logs"), LogsRequest, node.answer_logs),
            bus.answer(node_rpc_subject(name, "inspect"), InspectRequest, node.answer_inspect),
        )
    ]
    try:
        async with asyncio.timeout(10), bus.session():
            pass
        await node.beat()
        yield node
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
