"""An agent as a process of its own, a NATS to be killed and emptied, and the API's side of the talk."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from cortex_shared import procfs
from cortex_shared.bus import Bus, Mirror
from cortex_shared.contracts.base import content_hash
from cortex_shared.contracts.commands import (
    Manifest,
    ManifestEntry,
    Start,
    Stop,
    command_subject,
    manifest_subject,
)
from cortex_shared.contracts.observed import BUCKET, InstanceObserved, NodeObserved
from cortex_shared.contracts.plan import Marker, MetricNames, Plan, Probe
from cortex_shared.contracts.rpc import SecretsReply, SecretsRequest, secrets_subject
from cortex_shared.nats_auth import Authority, Role
from cortex_shared.settings import NatsSettings

NODE = "n1"
FLEET = "fleet-a"
FAKE = Path(__file__).parents[2] / "fakes" / "engine.py"
SOON_SECONDS = 20.0


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


async def until[T](look: Callable[[], T | None], what: str, seconds: float = SOON_SECONDS) -> T:
    """What `look` gives once it gives something true; fails with `what` when it does not in time."""
    deadline = anyio.current_time() + seconds
    while True:
        found = look()
        if found:
            return found
        assert anyio.current_time() < deadline, f"not within {seconds} s: {what}"
        await anyio.sleep(0.01)


async def until_true(look: Callable[[], Awaitable[bool]], what: str, seconds: float = SOON_SECONDS) -> None:
    """Until an answer that has to be waited for is yes."""
    deadline = anyio.current_time() + seconds
    while not await look():
        assert anyio.current_time() < deadline, f"not within {seconds} s: {what}"
        await anyio.sleep(0.05)


class NatsUnderTest:
    """A nats-server with JetStream, on a port that stays; with an `authority` it wants credentials."""

    def __init__(self, home: Path, authority: Authority | None = None) -> None:
        self._home = home
        self._authority = authority
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; clients connect when they find it."""
        server = Path(sys.executable).with_name("nats-server")
        self._process = subprocess.Popen(
            [server, "-js", "-sd", self._home, "-a", "127.0.0.1", "-p", str(self.port), *self._flags()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _flags(self) -> list[str | Path]:
        if self._authority is None:
            return []
        config = self._home.with_suffix(".conf")
        config.write_text(self._authority.server_config())
        return ["-c", config]

    def credentials(self, name: str, role: Role) -> Path | None:
        """A file of credentials, where they are wanted."""
        if self._authority is None:
            return None
        path = self._home.with_name(f"{name}.creds")
        path.write_text(self._authority.credentials(name, role=role))
        return path

    def kill(self, *, empty: bool = False) -> None:
        """kill -9, and throw away what it had stored if `empty`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if empty:
            shutil.rmtree(self._home, ignore_errors=True)


class AgentUnderTest:
    """An agent process and its state folder."""

    def __init__(self, folder: Path, nats_url: str, credentials: Path | None = None) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.models = folder / "models"
        self.models.mkdir()
        self.log = folder / "agent.log"
        self.http_port = 0
        self.env: dict[str, str] = {"CORTEX_AGENT__PORT_FIRST": str(free_port())}
        self.env["CORTEX_AGENT__PORT_LAST"] = "65000"
        self._nats = ["--nats", nats_url]
        # The credentials name the node.
        self._nats += ["--credentials", str(credentials)] if credentials else ["--node", NODE]
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The agent's command line."""
        words = [sys.executable, "-m", "cortex_node_agent", *self._nats]
        words += ["--address", "127.0.0.1", "--state", str(self.state), "--model-root", str(self.models)]
        return [*words, "--program", f"fake={sys.executable} -S {FAKE}"]

    def start(self) -> None:
        """Start it."""
        self.http_port = free_port()
        env = {"PATH": os.environ["PATH"], "CORTEX_HTTP__PORT": str(self.http_port), **self.env}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(), env=env, stdout=log, stderr=log)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal it and wait for its end."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def stop_engines(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """Run stop-engines on its state folder."""
        words = [sys.executable, "-m", "cortex_node_agent", "stop-engines", "--state", str(self.state)]
        return subprocess.run([*words, *flags], capture_output=True, text=True, check=False)

    def record(self, instance: str) -> dict[str, Any]:
        """The runner's record."""
        return json.loads((self.state / "instances" / instance / "run.json").read_text())

    def clean_up(self) -> None:
        """End it and whatever it started."""
        self.kill()
        for record in self.state.glob("instances/*/run.json"):
            found = json.loads(record.read_text())
            ours = procfs.belonging(found.get("pid"), f"CORTEX_RUN={found['run']}")
            for pid in [found.get("runner_pid"), *ours]:
                with suppress(ProcessLookupError, TypeError):
                    os.kill(pid, signal.SIGKILL)


class Fleet:
    """What the API does: commands out, observed state in, secrets handed out."""

    def __init__(self, bus: Bus, observed: Mirror) -> None:
        self.bus = bus
        self._observed = observed
        self.secrets: dict[str, str] = {"engine_key": "ck-secret"}
        self.secrets_asked = 0

    def start_message(self, instance: str, generation: int = 1, *, fleet: str = FLEET, **plan: Any) -> Start:
        """A Start of the fake engine; keywords are fields of the plan."""
        fields: dict[str, Any] = {
            "program": "fake",
            "argv": ["--host", "{host}", "--port", "{port}", "-a", "m"],
            "container_name": f"fake-model-{instance}",
            "grace_seconds": 2,
            "drain_seconds": 5,
            "probe": Probe(interval_seconds=0.2, timeout_seconds=1, failures_max=2),
            "markers": [Marker(text="loading the model", phase="loading")],
            "metrics": MetricNames(
                requests_running="llamacpp:requests_processing",
                generation_tokens_total="llamacpp:tokens_predicted_total",
            ),
            **plan,
        }
        built = Plan(**fields)
        return Start(
            fleet=fleet,
            node=NODE,
            instance=instance,
            generation=generation,
            model_id=1,
            model="m",
            served_model_name="m",
            plan=built,
            plan_hash=content_hash(built),
        )

    async def start(self, instance: str, generation: int = 1, **plan: Any) -> Start:
        """Publish a Start."""
        message = self.start_message(instance, generation, **plan)
        await self.send(message)
        return message

    async def send(self, message: Start | Stop) -> None:
        """Publish a command."""
        await self.bus.append(command_subject(message.node, message.instance), message)

    async def stop(self, instance: str, generation: int, **fields: Any) -> None:
        """Publish a Stop."""
        await self.send(Stop(fleet=FLEET, node=NODE, instance=instance, generation=generation, **fields))

    async def manifest(self, epoch: int, *instances: str, fleet: str = FLEET) -> None:
        """Publish a manifest that lists these."""
        entries = [ManifestEntry(instance=instance, generation=1) for instance in instances]
        message = Manifest(fleet=fleet, node=NODE, epoch=epoch, instances=entries)
        await self.bus.append(manifest_subject(NODE), message)

    def node(self) -> NodeObserved | None:
        """The node as last observed."""
        entry = self._observed.entries.get(NODE)
        return NodeObserved.decode(entry.data) if entry else None

    def instance(self, instance: str) -> InstanceObserved | None:
        """An instance as last observed."""
        node = self.node()
        return next((one for one in node.instances if one.instance == instance), None) if node else None

    async def phase(
        self, instance: str, phase: str, seconds: float = SOON_SECONDS, **fields: Any
    ) -> InstanceObserved:
        """Wait until an instance is observed in a phase, with these field values."""

        def look() -> InstanceObserved | None:
            found = self.instance(instance)
            if found is None or found.phase != phase:
                return None
            return found if all(getattr(found, name) == value for name, value in fields.items()) else None

        try:
            return await until(look, f"{instance} {phase} {fields}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.instance(instance)}") from None

    async def next_heartbeat(self) -> NodeObserved:
        """The next report that the agent makes."""
        before = self.node()
        last = (before.agent_started_at, before.heartbeat) if before else None

        def look() -> NodeObserved | None:
            node = self.node()
            return node if node and (node.agent_started_at, node.heartbeat) != last else None

        return await until(look, "a heartbeat")

    async def answer_secrets(self) -> None:
        """Be the API that hands out secrets."""

        async def answer(request: SecretsRequest, _subject: str) -> SecretsReply:
            self.secrets_asked += 1
            return SecretsReply(
                values={name: self.secrets[name] for name in request.names if name in self.secrets}
            )

        await self.bus.answer(secrets_subject(NODE), SecretsRequest, answer)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short-lived folder."""
    with tempfile.TemporaryDirectory(prefix="cortex-agent-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def nats(folder: Path) -> Iterator[NatsUnderTest]:
    """A NATS that runs."""
    server = NatsUnderTest(folder / "nats")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def agent(folder: Path, nats: NatsUnderTest) -> Iterator[AgentUnderTest]:
    """An agent that is to be started."""
    under_test = AgentUnderTest(folder, nats.url, nats.credentials(NODE, "node"))
    yield under_test
    under_test.clean_up()


@pytest.fixture
async def fleet(nats: NatsUnderTest) -> AsyncIterator[Fleet]:
    """The API's side, connected."""
    settings = NatsSettings(url=nats.url, credentials=nats.credentials("test", "service"))
    bus = Bus(settings, name="test", owns_streams=True)
    observed = Mirror.of_bucket(bus, BUCKET)
    fleet = Fleet(bus, observed)
    tasks = [asyncio.ensure_future(part()) for part in (bus.run, observed.run)]
    try:
        await until(lambda: bus.connected, "a connection to NATS")
        yield fleet
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def alive(pid: int | None) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
