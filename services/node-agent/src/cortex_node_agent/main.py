"""Builds the agent of its parts and runs them."""

import importlib.metadata
import socket
from functools import partial
from urllib.parse import urlsplit

import anyio
from cortex_shared.bus import Bus, Mirror
from cortex_shared.contracts.commands import STREAM, node_subjects
from cortex_shared.contracts.observed import Reason
from cortex_shared.health import Readiness, health_app
from cortex_shared.ids import check_token, default_node_name
from cortex_shared.logs import get_logger
from cortex_shared.metrics import Metrics
from cortex_shared.nats_auth import Credentials
from cortex_shared.process import serve
from cortex_shared.settings import NatsSettings

from cortex_node_agent.agent import Agent
from cortex_node_agent.download import Downloader
from cortex_node_agent.files import ModelRoots
from cortex_node_agent.gpus import Gpus
from cortex_node_agent.host import Host
from cortex_node_agent.lock import StateLock
from cortex_node_agent.observe import HostFacts, Reporter, Warnings
from cortex_node_agent.ports import Ports
from cortex_node_agent.process import ProcessRuntime
from cortex_node_agent.programs import Programs
from cortex_node_agent.rpc import Rpc
from cortex_node_agent.saver import Saver
from cortex_node_agent.secrets import SecretsClient
from cortex_node_agent.settings import AgentSettings, Settings, inherited_environment
from cortex_node_agent.store import StateFolder
from cortex_node_agent.telemetry import Telemetry
from cortex_node_agent.timeline import Timeline

_log = get_logger("main")

# Versions are asked for when a start right after boot is no longer slowed by it.
_VERSIONS_AFTER_SECONDS = 5.0
_SILENT_BEATS = 3


async def main(settings: Settings) -> None:
    """Run until SIGTERM. Raises Conflict when another agent has the state folder, InvalidInput otherwise."""
    told = settings.agent
    node = check_token(told.node or _default_name(settings.nats), field="node")
    address = told.address or default_address(settings.nats.url)
    state = StateFolder(told.state)
    lock = StateLock(told.state)
    lock.take()
    try:
        await _run(settings, node, address, state)
    finally:
        lock.release()


async def _run(settings: Settings, node: str, address: str, state: StateFolder) -> None:
    told = settings.agent
    bus = Bus(settings.nats, name=f"node-agent-{node}")
    mirror = Mirror(bus, STREAM, node_subjects(node))
    gpus = Gpus()
    gpus.open()
    facts, warnings = HostFacts(told, gpus), Warnings()
    roots = ModelRoots(told.model_roots, told.model_roots_file)
    reporter = Reporter(
        bus,
        told,
        facts,
        warnings,
        node=node,
        address=address,
        version=importlib.metadata.version("cortex-node-agent"),
        model_roots=roots.paths,
    )

    def warn(reason: Reason | None) -> None:
        if warnings.clear("state_not_saved") if reason is None else warnings.set(reason):
            reporter.changed()

    saver, timeline = Saver(state, warn), Timeline(bus, node)
    inherited = inherited_environment()
    runtime = ProcessRuntime(
        state,
        log_file_bytes_max=told.log_file_bytes_max,
        log_files_max=told.log_files_max,
        base_env=inherited,
    )
    host = Host(
        node=node,
        address=address,
        settings=told,
        state=state,
        runtime=runtime,
        roots=roots,
        downloader=Downloader(roots.paths[0], told.hf_endpoint),
        programs=Programs(told.programs, inherited),
        ports=Ports(address, told.port_first, told.port_last),
        secrets=SecretsClient(bus, node, state),
        inherited_env=inherited,
        changed=reporter.changed,
        save=saver.save,
        tell=timeline.tell,
    )
    agent = Agent(host, mirror, saver)
    reporter.watch(instances=agent.observed, epochs=agent.epochs, programs=host.programs.observed)
    telemetry = Telemetry(
        bus, facts, agent.instances, node=node, address=address, every_seconds=told.telemetry_seconds
    )
    rpc = Rpc(bus, node, agent, state, roots)
    _log.info("agent.started", node=node, address=address, state=str(told.state))
    await serve(
        health_app(_readiness(bus, reporter, told), _metrics(agent)),
        [
            bus.run,
            mirror.run,
            saver.run,
            agent.run,
            partial(reporter.run, agent.found),
            telemetry.run,
            timeline.run,
            rpc.run,
            partial(_discover, host.programs, reporter),
            runtime.keep_spare,
        ],
        host=settings.http.host,
        port=settings.http.port,
        drain_seconds=settings.http.drain_seconds,
    )


async def _discover(programs: Programs, reporter: Reporter) -> None:
    await programs.discover()
    reporter.changed()
    await anyio.sleep(_VERSIONS_AFTER_SECONDS)
    if await programs.ask_versions():
        reporter.changed()


def _readiness(bus: Bus, reporter: Reporter, told: AgentSettings) -> Readiness:
    def readiness() -> dict[str, str | None]:
        last = reporter.last_put_at
        heard = last is not None and anyio.current_time() - last < _SILENT_BEATS * told.heartbeat_seconds
        return {"bus": None if bus.connected else "not connected", "report": None if heard else "not sent"}

    return readiness


def _metrics(agent: Agent) -> Metrics:
    metrics = Metrics("node_agent")
    running = metrics.gauge("engines_running", "Engines that run on this host.")
    running.set_function(lambda: sum(instance.running is not None for instance in agent.instances()))
    held = metrics.gauge("instances_held", "Instances that this node holds, running or not.")
    held.set_function(lambda: len(list(agent.instances())))
    return metrics


def _default_name(nats: NatsSettings) -> str:
    if nats.credentials is not None:
        return Credentials.read(nats.credentials).name
    return default_node_name()


def default_address(nats_url: str) -> str:
    """This host's address on the way to NATS: gateways are likely to be there, too. No packet is sent."""
    host = urlsplit(nats_url.split(",")[0]).hostname or "127.0.0.1"
    try:
        family, _, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.connect(target)
            return str(trial.getsockname()[0])
    except OSError:
        _log.warning("address.unknown", nats_host=host, using="127.0.0.1")
        return "127.0.0.1"
