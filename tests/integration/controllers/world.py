"""One API process's controllers without its REST side, and nodes played by the test."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import pytest
from anyio.abc import TaskGroup
from cortex_api.controllers import Controllers
from cortex_api.db.migrate import migrate
from cortex_api.db.session import Database
from cortex_api.db.tables import Instance, Model
from cortex_api.observations import Observations
from cortex_api.secrets import SecretBox
from cortex_shared.bus import Bus, Mirror
from cortex_shared.clock import utc_now
from cortex_shared.contracts import commands, external, observed, verdicts
from cortex_shared.contracts.commands import Manifest, Start, Stop, decode_command
from cortex_shared.contracts.events import Event
from cortex_shared.contracts.observed import InstanceObserved, NodeObserved, Phase, ProgramObserved
from cortex_shared.contracts.verdicts import NodeVerdict
from cortex_shared.redis_connection import connect_redis
from cortex_shared.settings import NatsSettings
from cryptography.fernet import Fernet
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import col, select

from tests.servers import ServersUnderTest

FLEET = "fleet-test"
ENGINE_SECRET = "a fleet secret of this test"
WITHIN_SECONDS = 15.0


async def until[T](look: Callable[[], T | Awaitable[T]], *, within_seconds: float = WITHIN_SECONDS) -> T:
    """Ask again until the answer is true; fails with the last answer."""
    deadline = time.monotonic() + within_seconds
    while True:
        answer = look()
        found = await cast("Awaitable[T]", answer) if isinstance(answer, Awaitable) else answer
        if found:
            return found
        assert time.monotonic() < deadline, f"still {found!r} after {within_seconds} s"
        await asyncio.sleep(0.01)


@dataclass
class Api:
    """One API process."""

    bus: Bus
    database: Database
    controllers: Controllers
    observations: Observations
    scope: anyio.CancelScope
    events: list[Event] = field(default_factory=list[Event])

    def kill(self) -> None:
        """End its tasks without a word to the others."""
        self.scope.cancel()


@dataclass
class World:
    """The servers, the processes and the nodes of one test."""

    servers: ServersUnderTest
    database_url: str
    group: TaskGroup
    bus: Bus
    stream: Mirror
    box: SecretBox = field(default_factory=lambda: SecretBox(Fernet.generate_key().decode()))
    nodes: dict[str, NodeObserved] = field(default_factory=dict[str, NodeObserved])
    apis: list[Api] = field(default_factory=list[Api])

    async def api(self) -> Api:
        """Start one more API process."""
        settings = NatsSettings(url=self.servers.nats_url)
        bus = Bus(settings, name="api", owns_streams=True)
        database = Database(self.database_url)
        seen = Mirror.of_bucket(bus, observed.BUCKET)
        judged = Mirror.of_bucket(bus, verdicts.BUCKET)
        elsewhere = Mirror.of_bucket(bus, external.BUCKET)
        observations = Observations(seen, judged, elsewhere)
        redis = connect_redis(self.servers.redis_url)
        events: list[Event] = []
        controllers = Controllers(
            bus=bus,
            database=database,
            database_url=self.database_url,
            redis=redis,
            observations=observations,
            observed=seen,
            verdicts=judged,
            secret_box=self.box,
            engine_secret=ENGINE_SECRET,
            emit=events.extend,
        )
        started = Api(bus, database, controllers, observations, anyio.CancelScope(), events)

        async def run() -> None:
            try:
                with started.scope:
                    async with anyio.create_task_group() as group:
                        group.start_soon(bus.run)
                        group.start_soon(seen.run)
                        group.start_soon(judged.run)
                        group.start_soon(elsewhere.run)
                        group.start_soon(database.run, prepare)
                        for task in controllers.tasks():
                            group.start_soon(task)
            finally:
                with anyio.CancelScope(shield=True):
                    await database.close()
                    await redis.aclose()

        self.group.start_soon(run)
        self.apis.append(started)
        with anyio.fail_after(WITHIN_SECONDS):
            await database.wait_ready()
        return started

    async def leader(self) -> Api:
        """The elected process, as soon as there is one."""
        await until(lambda: any(api.controllers.leader for api in self.apis))
        return next(api for api in self.apis if api.controllers.leader)

    async def model(self, **changes: Any) -> int:
        """Store a model as the REST side would; returns its id."""
        values: dict[str, Any] = {
            "name": "m",
            "served_model_name": changes.get("name", "m"),
            "task": "chat",
            "engine_type": "llamacpp",
            "settings": {"local_path": "m.gguf"},
            "desired_state": "running",
        }
        row = Model(**(values | changes))
        async with self.apis[0].database.transaction() as session:
            session.add(row)
            await session.flush()
            assert row.id is not None
            return row.id

    async def change(self, model_id: int, **changes: Any) -> None:
        """Change a model's row, as the REST side would."""
        async with self._database().transaction() as session:
            row = (await session.exec(select(Model).where(Model.id == model_id))).one()
            for name, value in changes.items():
                setattr(row, name, value)
            session.add(row)

    async def rows(self, model_id: int) -> list[Instance]:
        """A model's instance rows."""
        async with self._database().transaction() as session:
            statement = select(Instance).where(Instance.model_id == model_id).order_by(col(Instance.id))
            return list(await session.exec(statement))

    async def models(self) -> list[int | None]:
        """Ids of all models."""
        async with self._database().transaction() as session:
            return list(await session.exec(select(Model.id)))

    def _database(self) -> Database:
        return next(api.database for api in self.apis if not api.scope.cancel_called)

    async def node(self, name: str = "n1", **changes: Any) -> NodeObserved:
        """Let a node say what it is; again with changes."""
        before = self.nodes.get(name)
        values: dict[str, Any] = {
            "node": name,
            "at": utc_now(),
            "heartbeat": 1,
            "heartbeat_seconds": 2.0,
            "agent_version": "0",
            "agent_started_at": utc_now(),
            "boot_id": "b",
            "address": "127.0.0.1",
            "cpus": 4,
            "memory_total_mib": 16_000,
            "memory_available_mib": 12_000,
            "programs": [ProgramObserved(name="llama-server", runtime="process", target="llama-server")],
        }
        now = NodeObserved(**values) if before is None else before
        now = now.model_copy(update={**changes, "at": utc_now(), "heartbeat": now.heartbeat + 1})
        self.nodes[name] = now
        await self.bus.put(observed.BUCKET, name, now)
        return now

    async def runs(self, start: Start, phase: Phase = "ready", **changes: Any) -> None:
        """Let a node run what it was told, in a phase, beside what it runs already."""
        seen = InstanceObserved(
            instance=start.instance,
            fleet=start.fleet,
            generation=start.generation,
            plan_hash=start.plan_hash,
            model_id=start.model_id,
            model=start.model,
            served_model_name=start.served_model_name,
            name=start.plan.container_name,
            phase=phase,
            since=utc_now(),
            gpus=start.plan.gpus,
        ).model_copy(update=changes)
        others = [one for one in self.nodes[start.node].instances if one.instance != start.instance]
        await self.node(start.node, instances=[*others, seen])

    async def obeys(self, node: str) -> None:
        """Let a node confirm its newest manifest and drop what it does not list, as an agent would."""
        manifest = await self.manifest(node)
        listed = {entry.instance for entry in manifest.instances}
        kept = [one for one in self.nodes[node].instances if one.instance in listed]
        await self.node(node, instances=kept, manifest_epochs={manifest.fleet: manifest.epoch})

    async def judge(self, node: str, verdict: verdicts.Verdict) -> None:
        """Let the monitor judge a node."""
        judged = NodeVerdict(node=node, verdict=verdict, since=utc_now())
        await self.bus.put(verdicts.BUCKET, node, judged)

    def told(self, node: str = "n1") -> list[Start | Stop]:
        """The commands in the stream for a node."""
        prefix = commands.command_subject(node, "")
        found = [decode_command(e.data) for s, e in self.stream.entries.items() if s.startswith(prefix)]
        return [command for command in found if isinstance(command, (Start, Stop))]

    async def start(self, node: str = "n1", *, generation: int = 1) -> Start:
        """The Start for a node, as soon as there is one."""

        def look() -> Start | None:
            return next(
                (c for c in self.told(node) if isinstance(c, Start) and c.generation >= generation), None
            )

        found = await until(look)
        assert found is not None
        return found

    async def stop(self, node: str = "n1") -> Stop:
        """The Stop for a node, as soon as there is one."""
        found = await until(lambda: next((c for c in self.told(node) if isinstance(c, Stop)), None))
        assert found is not None
        return found

    def manifest_now(self, node: str = "n1") -> Manifest | None:
        """The node's manifest in the stream."""
        entry = self.stream.entries.get(commands.manifest_subject(node))
        found = None if entry is None else decode_command(entry.data)
        return found if isinstance(found, Manifest) else None

    async def manifest(self, node: str = "n1", *, lists: int | None = None, epoch: int = 0) -> Manifest:
        """The node's manifest, as soon as there is one with so many instances and so high an epoch."""

        def look() -> Manifest | None:
            found = self.manifest_now(node)
            if found is None or found.epoch < epoch:
                return None
            return found if lists is None or len(found.instances) == lists else None

        found = await until(look)
        assert found is not None
        return found


async def prepare(engine: AsyncEngine) -> None:
    """Tables, and a fleet of a known name."""
    async with engine.begin() as connection:
        await migrate(connection)
        await connection.exec_driver_sql(
            "INSERT INTO fleet (id, fleet, manifest_epoch, routes_epoch, keyring_version, created_at)"
            f" VALUES (1, '{FLEET}', 1, 1, 1, now()) ON CONFLICT DO NOTHING"
        )


@pytest.fixture
async def world(servers: ServersUnderTest) -> AsyncIterator[World]:
    """Fresh stores, one API process that is elected, and no node yet."""
    url = await servers.fresh_database(scheme="postgresql+asyncpg")
    await servers.fresh_nats()
    await servers.flush_redis()
    made: asyncio.Future[World] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()
    # A task of its own: a fixture's two halves run in different tasks, which a task group does not bear.
    running = asyncio.create_task(_hold(servers, url, made, done))
    await asyncio.wait([running, made], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
    yield await made
    done.set()
    await running
    await servers.drop_database(url)


async def _hold(
    servers: ServersUnderTest, url: str, made: "asyncio.Future[World]", done: asyncio.Event
) -> None:
    async with anyio.create_task_group() as group:
        bus = Bus(NatsSettings(url=servers.nats_url), name="test", owns_streams=True)
        stream = Mirror(bus, commands.STREAM, commands.SUBJECTS)
        group.start_soon(bus.run)
        group.start_soon(stream.run)
        world = World(servers, url, group, bus, stream)
        with anyio.fail_after(WITHIN_SECONDS):
            await stream.wait_synced()
        await world.api()
        await world.leader()
        made.set_result(world)
        await done.wait()
        group.cancel_scope.cancel()


__all__ = ["ENGINE_SECRET", "FLEET", "Api", "World", "until", "world"]
