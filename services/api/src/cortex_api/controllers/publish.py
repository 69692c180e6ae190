"""Publisher: makes the command stream say what the rows say, node by node, by comparison."""

from collections.abc import Callable, Mapping

from cortex_shared.bus import Bus, Entry, Mirror
from cortex_shared.contracts import commands
from cortex_shared.contracts.base import Message
from cortex_shared.contracts.commands import Manifest, ManifestEntry, Start, Stop
from cortex_shared.contracts.observed import InstanceObserved, NodeObserved
from cortex_shared.errors import Conflict, InvalidInput, Unavailable
from cortex_shared.logs import get_logger
from cortex_shared.reconcile import Again

from cortex_api.controllers import repository
from cortex_api.controllers.decide import Streamed
from cortex_api.controllers.desired import Desired
from cortex_api.controllers.leader import Fence
from cortex_api.controllers.orphans import orphans_on
from cortex_api.controllers.rows import InstanceRow
from cortex_api.db.session import Database

_log = get_logger("controllers.publish")

_CONFLICT_SECONDS = 0.5


class Publisher:
    """Works during one election. `look(node)` is one comparison; nothing is remembered between looks."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        mirror: Mirror,
        desired: Desired,
        observed: Callable[[str], NodeObserved | None],
        check: Fence,
    ) -> None:
        """`mirror` is of the whole command stream; `observed` gives what a node last said; `check`: see
        Leadership.
        """
        self._check = check
        self._bus = bus
        self._database = database
        self._mirror = mirror
        self._desired = desired
        self._observed = observed
        self._settled: set[str] = set()

    def settle(self, node: str) -> None:
        """All that the node runs has been compared with rows: from now on it may get manifests.

        Before that, a manifest from a restored database could omit an engine that is to be adopted.
        """
        self._settled.add(node)

    def settled(self, node: str) -> bool:
        """Whether `settle` was called for it."""
        return node in self._settled

    async def look(self, node: str) -> Again | None:
        """Publish what is missing or older. Raises Unavailable."""
        if not self._mirror.synced:
            raise Unavailable("the command stream has not been read yet", code="bus.not_synced")
        rows = self._desired.rows_on(node)
        try:
            for row in rows:
                await self._command(row)
            if node in self._settled:
                await self._manifest(node, rows)
        except Conflict:
            # The mirror lags, or another controller writes: what the mirror learns decides.
            _log.info("publish.outdated", node=node)
            return Again(_CONFLICT_SECONDS)
        return None

    def streamed_for(self, rows: list[InstanceRow], others: Mapping[str, str]) -> dict[str, Streamed]:
        """The newest commands for these rows, and for instances given by id with their node."""
        where = {row.id: row.node for row in rows} | dict(others)
        found: dict[str, Streamed] = {}
        for instance, node in where.items():
            entry = self._mirror.entries.get(commands.command_subject(node, instance))
            command = None if entry is None else _decode(entry)
            if isinstance(command, (Start, Stop)) and command.fleet == self._desired.fleet:
                found[instance] = _streamed(command)
        return found

    def confirmed_absent(self, row: InstanceRow, observed: NodeObserved) -> bool:
        """Whether the node has seen a manifest without this instance, and does not run it."""
        entry = self._mirror.entries.get(commands.manifest_subject(row.node))
        manifest = None if entry is None else _decode(entry)
        if not isinstance(manifest, Manifest) or manifest.fleet != self._desired.fleet:
            return False
        if any(listed.instance == row.id for listed in manifest.instances):
            return False
        return observed.manifest_epochs.get(self._desired.fleet, 0) >= manifest.epoch

    def orphans(self, observed: NodeObserved) -> list[InstanceObserved]:
        """What runs on a node though no row knows it, and nobody stopped it."""
        return orphans_on(observed, self._desired, self._is_let_go)

    def is_told_to_stop(self, row: InstanceRow) -> bool:
        """Whether a Stop for this row is in the stream."""
        command = self.streamed_for([row], {}).get(row.id)
        return command is not None and command.plan is None and command.generation >= row.generation

    def _is_let_go(self, node: str, found: InstanceObserved) -> bool:
        command = self.streamed_for([], {found.instance: node}).get(found.instance)
        return command is not None and command.plan is None and command.generation > found.generation

    async def _command(self, row: InstanceRow) -> None:
        subject = commands.command_subject(row.node, row.id)
        entry = self._mirror.entries.get(subject)
        if entry is not None:
            command = _decode(entry)
            if (
                isinstance(command, (Start, Stop))
                and command.fleet == self._desired.fleet
                # A newer one is the business of the model's look, which goes above it.
                and command.generation >= row.generation
            ):
                return
        await self._append(subject, _message(self._desired.fleet, row), entry)

    async def _manifest(self, node: str, rows: list[InstanceRow]) -> None:
        observed = self._observed(node)
        if observed is None:
            return
        fleet = self._desired.fleet
        generations = {row.id: row.generation for row in rows if row.desired == "run"}
        orphans = {found.instance: found.generation for found in self.orphans(observed)}
        listed = [
            ManifestEntry(instance=instance, generation=generation)
            for instance, generation in sorted({**orphans, **generations}.items())
        ]
        subject = commands.manifest_subject(node)
        entry = self._mirror.entries.get(subject)
        current = None if entry is None else _decode(entry)
        told = current if isinstance(current, Manifest) and current.fleet == fleet else None
        seen = observed.manifest_epochs.get(fleet, 0)
        if told is not None and told.instances == listed and told.epoch >= seen:
            await self._purge(observed, {*orphans, *(row.id for row in rows)})
            return
        floor = max(seen, told.epoch if told is not None else 0)
        if self._desired.manifest_epoch <= floor:
            async with self._database.transaction() as session:
                await self._check(session)
                epoch = await repository.raise_manifest_epoch(session, floor)
            self._desired.raise_epoch(epoch)
        manifest = Manifest(fleet=fleet, node=node, epoch=self._desired.manifest_epoch, instances=listed)
        await self._append(subject, manifest, entry)
        await self._purge(observed, {*orphans, *(row.id for row in rows)})

    async def _purge(self, observed: NodeObserved, known: set[str]) -> None:
        """Remove commands of this fleet for instances that nobody knows; the manifest is out already.

        A Stop stays for as long as its instance is seen: a node that was given up may come back with it.
        """
        seen = {found.instance for found in observed.instances if found.phase != "stopped"}
        prefix = commands.command_subject(observed.node, "")
        for subject, entry in list(self._mirror.entries.items()):
            instance = subject.removeprefix(prefix)
            if instance == subject or instance == commands.MANIFEST or instance in known:
                continue
            command = _decode(entry)
            if isinstance(command, Stop) and instance in seen:
                continue
            if isinstance(command, (Start, Stop)) and command.fleet == self._desired.fleet:
                await self._bus.purge(commands.STREAM, subject)
                # A purge is told to nobody, so the mirror would keep it for ever.
                self._mirror.entries.pop(subject, None)

    async def _append(self, subject: str, message: Message, entry: Entry | None) -> None:
        sequence = await self._bus.append(
            subject, message, expected_sequence=0 if entry is None else entry.sequence
        )
        # Ahead of the mirror's own news of it, so that the next look does not publish it again.
        known = self._mirror.entries.get(subject)
        if known is None or known.sequence < sequence:
            self._mirror.entries[subject] = Entry(message.encode(), sequence)


def _message(fleet: str, row: InstanceRow) -> Start | Stop:
    if row.desired == "stop":
        return Stop(
            fleet=fleet,
            node=row.node,
            instance=row.id,
            generation=row.generation,
            drain_seconds=row.plan.drain_seconds,
        )
    return Start(
        fleet=fleet,
        node=row.node,
        instance=row.id,
        generation=row.generation,
        model_id=row.model_id,
        model=row.model,
        served_model_name=row.served_model_name,
        plan=row.plan,
        plan_hash=row.plan_hash,
    )


def _decode(entry: Entry) -> Start | Stop | Manifest | None:
    try:
        return commands.decode_command(entry.data)
    except InvalidInput:
        return None


def _streamed(command: Start | Stop) -> Streamed:
    if isinstance(command, Stop):
        return Streamed(command.generation, command.node)
    return Streamed(command.generation, command.node, command.plan, command.plan_hash)
