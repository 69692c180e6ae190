"""Agent: hears what this node is to run, holds it, and gives each instance its task."""

import time
from collections.abc import Iterable

import anyio
import anyio.abc
import anyio.to_thread
from cortex_shared.bus import Mirror
from cortex_shared.contracts.commands import Manifest, Start, Stop, decode_command
from cortex_shared.contracts.observed import InstanceObserved
from cortex_shared.errors import InvalidInput
from cortex_shared.ids import check_token
from cortex_shared.logs import get_logger

from cortex_node_agent import decide
from cortex_node_agent.decide import Heard, Sequenced
from cortex_node_agent.host import Host
from cortex_node_agent.instance import Instance
from cortex_node_agent.process import read_record
from cortex_node_agent.saver import Saver
from cortex_node_agent.store import Desired, FleetMemory

_log = get_logger("agent")

_SWEEP_SECONDS = 3600.0
_DAY_SECONDS = 86_400.0


class Agent:
    """`found` is set when every instance of an earlier agent has been looked for."""

    def __init__(self, host: Host, mirror: Mirror, saver: Saver) -> None:
        self._host = host
        self._mirror = mirror
        self._saver = saver
        self._memory = FleetMemory()
        self._instances: dict[str, Instance] = {}
        self._decoded: dict[str, tuple[int, Start | Stop | Manifest | None]] = {}
        self._hint = anyio.Event()
        self.found = anyio.Event()
        mirror.on_change(lambda _subject: self._hint.set())

    def instances(self) -> Iterable[Instance]:
        """All that are held now."""
        return list(self._instances.values())

    def observed(self) -> list[InstanceObserved]:
        """How all of them are."""
        found = (instance.observed() for instance in self._instances.values())
        return [observed for observed in found if observed is not None]

    def epochs(self) -> dict[str, int]:
        """The newest manifest epoch of each fleet."""
        return self._memory.epochs

    def knows(self, instance: str) -> bool:
        """Whether it is held."""
        return instance in self._instances

    def is_running(self, instance: str) -> bool:
        """Whether its engine runs, or is to run."""
        held = self._instances.get(instance)
        return held is not None and (held.running is not None or held.desired.wish == "run")

    async def run(self) -> None:
        """Take up what an earlier agent left, then listen until cancelled. Ending stops no engine."""
        state = self._host.state
        self._memory = state.load_memory()
        async with anyio.create_task_group() as group:
            for name in state.instances():
                desired = self._load(name)
                if desired is not None:
                    self._add(group, desired)
            for instance in self.instances():
                await instance.found.wait()
            self.found.set()
            self._host.changed()
            group.start_soon(self._sweep)
            while True:
                self._hint = anyio.Event()
                self._listen(group)
                await self._hint.wait()

    def _load(self, instance: str) -> Desired | None:
        desired = self._host.state.load_desired(instance)
        # The last agent may have been killed between starting an engine and keeping the wish for it.
        record = read_record(self._host.state.record(instance))
        if record is not None and (
            desired is None or record.start.generation > max(desired.generation, desired.start.generation)
        ):
            desired = Desired(start=record.start, generation=record.start.generation, port=record.port)
        return desired

    def _listen(self, group: anyio.abc.TaskGroup) -> None:
        held = {name: instance.desired for name, instance in self._instances.items()}
        outcome = decide.listen(self._heard(), held, self._memory)
        if outcome.memory is not None:
            self._memory = outcome.memory
            self._saver.remember(outcome.memory)
            self._host.changed()
        for name, desired in outcome.desired.items():
            _log.info("instance.wished", instance=name, wish=desired.wish, generation=desired.generation)
            self._saver.save(desired)
            if name in self._instances:
                self._instances[name].desire(desired)
            else:
                self._add(group, desired)

    def _add(self, group: anyio.abc.TaskGroup, desired: Desired) -> None:
        instance = Instance(self._host, desired)
        self._instances[desired.start.instance] = instance
        group.start_soon(self._own, instance)

    async def _own(self, instance: Instance) -> None:
        await instance.run()
        desired = instance.desired
        name = desired.start.instance
        del self._instances[name]
        self._host.ports.release(name)
        self._memory = decide.removed(self._memory, name, desired.generation)
        self._saver.remember(self._memory)
        self._saver.forget(name)
        self._host.changed()
        self._hint.set()
        _log.info("instance.forgotten", instance=name)

    def _heard(self) -> Heard:
        commands: dict[str, Sequenced[Start | Stop]] = {}
        manifest: Sequenced[Manifest] | None = None
        decoded: dict[str, tuple[int, Start | Stop | Manifest | None]] = {}
        for subject, entry in self._mirror.entries.items():
            before = self._decoded.get(subject)
            if before is not None and before[0] == entry.sequence:
                command = before[1]
            else:
                command = self._decode(subject, entry.data)
            decoded[subject] = (entry.sequence, command)
            if isinstance(command, Manifest):
                manifest = Sequenced(command, entry.sequence)
            elif command is not None:
                commands[command.instance] = Sequenced(command, entry.sequence)
        self._decoded = decoded
        return Heard(commands, manifest)

    def _decode(self, subject: str, data: bytes) -> Start | Stop | Manifest | None:
        try:
            command = decode_command(data)
            if command.node != self._host.node:
                raise InvalidInput("it is for another node", code="message.invalid")
            if not isinstance(command, Manifest):
                # It becomes the name of a folder.
                check_token(command.instance, field="instance")
        except InvalidInput as error:
            _log.warning("command.ignored", subject=subject, error=error.message)
            return None
        return command

    async def _sweep(self) -> None:
        while True:
            older_than = time.time() - self._host.settings.log_days * _DAY_SECONDS
            known = set(self._instances)
            await anyio.to_thread.run_sync(
                lambda known=known, limit=older_than: self._host.state.sweep_logs(known, older_than=limit)
            )
            await anyio.sleep(_SWEEP_SECONDS)
