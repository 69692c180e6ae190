"""Election: everything that works while this process is the elected controller; made anew each time."""

from collections.abc import Callable, Iterable

import anyio
from cortex_shared.bus import Bus, Mirror
from cortex_shared.contracts import commands
from cortex_shared.contracts.events import Event
from cortex_shared.contracts.observed import NodeObserved, Reason
from cortex_shared.contracts.routes import WANTED_BUCKET
from cortex_shared.errors import Unavailable
from cortex_shared.logs import get_logger
from cortex_shared.reconcile import Again, Loop

from cortex_api.controllers import repository
from cortex_api.controllers.desired import Desired
from cortex_api.controllers.files import Files
from cortex_api.controllers.leader import Fence
from cortex_api.controllers.models import ModelController
from cortex_api.controllers.problems import tell
from cortex_api.controllers.publish import Publisher
from cortex_api.controllers.sealing import Sealer
from cortex_api.controllers.wanted import WantedRoutes
from cortex_api.db.session import Database
from cortex_api.observations import Observations

_log = get_logger("controllers")

_SWEEP_SECONDS = 30.0
_RETRY_SECONDS = 0.5
_WORKERS_MAX = 4
# A node could claim any id; there is to be room above.
_RESERVED_MAX = 2**30
_ALL = "all"

type _Signature = tuple[object, ...]


class Election:
    """`run` until it is cancelled. Hints before everything is read are kept."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        observations: Observations,
        emit: Callable[[list[Event]], None],
        sealer: Sealer,
        check: Fence,
    ) -> None:
        """`check` raises Unavailable in a transaction when this process is no longer elected."""
        self._bus = bus
        self._database = database
        self._observations = observations
        self._commands = Mirror(bus, commands.STREAM, commands.SUBJECTS)
        self._wanted_mirror = Mirror.of_bucket(bus, WANTED_BUCKET)
        self._desired = Desired()
        publisher = Publisher(bus, database, self._commands, self._desired, observations.node, check)
        self._publisher = publisher
        self._wanted = WantedRoutes(
            bus, database, self._wanted_mirror, self._desired, self._orphans, sealer, check
        )
        self._models = ModelController(
            database,
            observations,
            self._desired,
            publisher,
            Files(bus),
            check=check,
            changed=self._rows_changed,
            emit=emit,
        )
        self._model_loop: Loop[int] = Loop(self._models.look, workers_max=_WORKERS_MAX)
        self._publish_loop: Loop[str] = Loop(publisher.look, workers_max=_WORKERS_MAX)
        self._wanted_loop: Loop[str] = Loop(self._wanted.look, workers_max=1)
        self._settle_loop: Loop[str] = Loop(self._settle, workers_max=1)
        self._signatures: dict[str, _Signature] = {}
        self._orphans_on: dict[str, list[str]] = {}
        self._reserved = 0
        self._commands.on_change(self._command_changed)
        self._wanted_mirror.on_change(self._wanted_changed)

    async def run(self) -> None:
        """Read everything, then act, until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._commands.run)
            group.start_soon(self._wanted_mirror.run)
            group.start_soon(tell, self._bus, self._models.problems)
            # Nothing is decided before the database and both streams have been read once: what is not known
            # yet would look as if it were not there.
            await self._load()
            await self._commands.wait_synced()
            await self._wanted_mirror.wait_synced()
            await self._reserve_routed_ids()
            for loop in (self._model_loop, self._publish_loop, self._wanted_loop, self._settle_loop):
                group.start_soon(loop.run)
            _log.info("controllers.acting", fleet=self._desired.fleet, models=len(self._desired.models))
            self._hint_all()
            while True:
                await anyio.sleep(_SWEEP_SECONDS)
                await self._sweep()

    def hint_model(self, model_id: int) -> None:
        """Look at this model."""
        self._model_loop.hint(model_id)

    def problem_of(self, model_id: int) -> Reason | None:
        """See Controllers."""
        return self._models.problems.get(model_id)

    def node_changed(self, name: str | None) -> None:
        """A node said something new (None: everything was read anew)."""
        for node in self._observations.nodes() if name is None else [name]:
            observed = self._observations.node(node)
            if observed is None:
                continue
            signature = _signature(observed)
            before = self._signatures.get(node)
            if signature == before:
                continue
            self._signatures[node] = signature
            if not self._publisher.settled(node):
                self._settle_loop.hint(node)
            else:
                self._publish_loop.hint(node)
                self._orphans_changed(observed)
            for model_id in self._models_of(observed):
                self._model_loop.hint(model_id)
            if before is None or before[1] != signature[1]:
                # More, or less, to run things with: worth another try.
                for model_id in self._models.problems:
                    self._model_loop.hint(model_id)

    def verdict_changed(self, name: str | None) -> None:
        """The monitor judged anew."""
        nodes = self._desired.nodes() if name is None else {name}
        for node in nodes:
            for model_id in self._desired.models_on(node):
                self._model_loop.hint(model_id)
        for model_id in self._models.problems:
            self._model_loop.hint(model_id)

    def _orphans_changed(self, observed: NodeObserved) -> None:
        """Say so, and look at the routes that go to them."""
        orphans = [found.instance for found in self._publisher.orphans(observed)]
        if orphans != self._orphans_on.get(observed.node, []):
            _log.warning("node.orphans", node=observed.node, instances=orphans)
            self._orphans_on[observed.node] = orphans
            self._wanted_loop.hint(_ALL)

    def _orphans(self) -> set[str]:
        """Ids of all orphans. Raises Unavailable while it is not known what nodes run."""
        if not self._observations.synced:
            raise Unavailable("what nodes run has not been read yet", code="bus.not_synced")
        nodes = self._observations.nodes().values()
        return {found.instance for node in nodes for found in self._publisher.orphans(node)}

    def _models_of(self, observed: NodeObserved) -> set[int]:
        ours = {found.model_id for found in observed.instances if found.fleet == self._desired.fleet}
        return ours | self._desired.models_on(observed.node)

    async def _settle(self, node: str) -> Again | None:
        """Let every model look at what the node runs, so that it is adopted before a manifest goes out."""
        observed = self._observations.node(node)
        if observed is None:
            return None
        if node not in self._models.nodes:
            async with self._database.transaction() as session:
                await repository.heard_of(session, [node])
        await self._reserve_ids(self._models_of(observed))
        for model_id in sorted(self._models_of(observed)):
            while (await self._models.look(model_id)) is not None:
                if model_id in self._models.problems:
                    break
                await anyio.sleep(0.05)
        self._publisher.settle(node)
        self._publish_loop.hint(node)
        self._orphans_changed(observed)
        return None

    async def _reserve_ids(self, seen: Iterable[int]) -> None:
        """Give no new model the id of one that a lost database knew, and of which something is left."""
        highest = max((ident for ident in seen if ident <= _RESERVED_MAX), default=0)
        if highest > self._reserved:
            async with self._database.transaction() as session:
                await repository.reserve_model_ids(session, highest)
            self._reserved = highest

    def _rows_changed(self, nodes: set[str]) -> None:
        for node in nodes:
            self._publish_loop.hint(node)
        self._wanted_loop.hint(_ALL)

    def _command_changed(self, subject: str | None) -> None:
        # Single changes are our own echoes, or another controller's, whom the sequence already fences.
        if subject is None:
            self._hint_nodes()

    def _wanted_changed(self, key: str | None) -> None:
        if key is None:
            self._wanted_loop.hint(_ALL)

    def _hint_nodes(self) -> None:
        for node in self._desired.nodes() | set(self._observations.nodes()):
            self._publish_loop.hint(node)

    def _hint_all(self) -> None:
        for model_id in self._desired.models:
            self._model_loop.hint(model_id)
        self.node_changed(None)
        self._hint_nodes()
        self._wanted_loop.hint(_ALL)

    async def _sweep(self) -> None:
        """Look at all that wants something, also at what a lost hint was about."""
        try:
            async with self._database.transaction() as session:
                wanting = await repository.model_ids(session)
        except Unavailable as error:
            _log.warning("controllers.wait", error=error.message)
            return
        for model_id in wanting:
            self._model_loop.hint(model_id)
        self._hint_all()

    async def _reserve_routed_ids(self) -> None:
        while True:
            try:
                await self._reserve_ids(int(key) for key in self._wanted_mirror.entries if key.isdecimal())
                return
            except Unavailable as error:
                _log.warning("controllers.wait", error=error.message)
                await anyio.sleep(_RETRY_SECONDS)

    async def _load(self) -> None:
        while True:
            try:
                async with self._database.transaction() as session:
                    fleet = await repository.fleet(session)
                    models = await repository.models(session)
                    rows = await repository.instances(session)
                    self._models.nodes = await repository.nodes(session)
                self._desired.load(fleet, models, rows)
                return
            except Unavailable as error:
                _log.warning("controllers.wait", error=error.message)
                await anyio.sleep(_RETRY_SECONDS)


def _signature(observed: NodeObserved) -> _Signature:
    """What of a node's message matters here: most heart-beats change nothing of it."""
    instances = tuple(
        sorted(
            (found.instance, found.fleet, found.generation, found.phase, found.plan_hash)
            for found in observed.instances
        )
    )
    epochs = tuple(sorted(observed.manifest_epochs.items()))
    programs = tuple(sorted((program.name, program.version or "") for program in observed.programs))
    gpus = tuple(sorted(gpu.uuid for gpu in observed.gpus))
    labels = tuple(sorted(observed.labels.items()))
    return (epochs, (programs, gpus, labels, observed.cpus), instances)
