"""WantedRoutes: projects running models into the bucket from which the monitor makes routes."""

from collections.abc import Callable

from cortex_shared.bus import Bus, Entry, Mirror
from cortex_shared.bus.streams import bucket_stream, bucket_subject
from cortex_shared.contracts.base import Message
from cortex_shared.contracts.routes import (
    WANTED_BUCKET,
    WANTED_MANIFEST,
    ExternalEndpoint,
    RouteWanted,
    WantedManifest,
)
from cortex_shared.errors import Conflict, InvalidInput, Unavailable
from cortex_shared.reconcile import Again

from cortex_api.controllers import repository
from cortex_api.controllers.desired import Desired
from cortex_api.controllers.leader import Fence
from cortex_api.controllers.rows import InstanceRow, ModelRow
from cortex_api.controllers.sealing import Sealer
from cortex_api.db.session import Database
from cortex_api.engines import engine_of

_CONFLICT_SECONDS = 0.5


class WantedRoutes:
    """Works during one election, by comparison with a mirror of the bucket."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        mirror: Mirror,
        desired: Desired,
        orphans: Callable[[], set[str]],
        sealer: Sealer,
        check: Fence,
    ) -> None:
        """`orphans`: ids of instances that run though no row knows them; raises Unavailable. `check`: see
        Leadership.
        """
        self._check = check
        self._orphans = orphans
        self._sealer = sealer
        self._bus = bus
        self._database = database
        self._mirror = mirror
        self._desired = desired

    async def look(self, _key: str) -> Again | None:
        """Write routes that differ, then the manifest if the set of models differs. Raises Unavailable."""
        if not self._mirror.synced:
            raise Unavailable("the wanted routes have not been read yet", code="bus.not_synced")
        routes = {
            str(model.id): route_wanted(model, self._desired.rows_of(model.id), self._external(model))
            for model in self._desired.models.values()
            if model.running and not model.deleting and model.spec is not None
        }
        # Unreadable models keep the route that they have.
        kept = {
            str(model.id)
            for model in self._desired.models.values()
            if model.running and model.spec is None and str(model.id) in self._mirror.entries
        } | self._of_orphans()
        try:
            for key, route in routes.items():
                await self._put(key, route)
            await self._manifest(sorted(int(key) for key in {*routes, *kept}))
        except Conflict:
            return Again(_CONFLICT_SECONDS)
        return None

    def _external(self, model: ModelRow) -> list[ExternalEndpoint]:
        entry = self._mirror.entries.get(str(model.id))
        standing = None if entry is None else _decoded(entry)
        return self._sealer.external(model, [] if standing is None else standing.external)

    def _of_orphans(self) -> set[str]:
        """Keys of models that no row knows, but whose engines run: nobody stopped them."""
        unknown = {
            key: entry
            for key, entry in self._mirror.entries.items()
            if key.isdecimal() and int(key) not in self._desired.models
        }
        if not unknown:
            return set()
        orphans = self._orphans()
        return {key for key, entry in unknown.items() if not orphans.isdisjoint(_instances(entry))}

    async def _manifest(self, models: list[int]) -> None:
        fleet = self._desired.fleet
        entry = self._mirror.entries.get(WANTED_MANIFEST)
        current: WantedManifest | None = None
        if entry is not None:
            try:
                current = WantedManifest.decode(entry.data)
            except InvalidInput:
                current = None
        if current is None or current.fleet != fleet or current.models != models:
            floor = current.epoch if current is not None else 0
            async with self._database.transaction() as session:
                await self._check(session)
                epoch = await repository.raise_routes_epoch(session, floor)
            self._desired.routes_epoch = epoch
            await self._put(WANTED_MANIFEST, WantedManifest(fleet=fleet, epoch=epoch, models=models))
        known = {WANTED_MANIFEST, *map(str, models)}
        for key in [key for key in self._mirror.entries if key not in known]:
            await self._bus.purge(bucket_stream(WANTED_BUCKET), bucket_subject(WANTED_BUCKET, key))
            # A purge is told to nobody, so the mirror would keep it for ever.
            self._mirror.entries.pop(key, None)

    async def _put(self, key: str, message: Message) -> None:
        entry = self._mirror.entries.get(key)
        data = message.encode()
        if entry is not None and entry.data == data:
            return
        sequence = await self._bus.put(
            WANTED_BUCKET, key, message, expected_sequence=0 if entry is None else entry.sequence
        )
        known = self._mirror.entries.get(key)
        if known is None or known.sequence < sequence:
            self._mirror.entries[key] = Entry(data, sequence)


def _instances(entry: Entry) -> list[str]:
    standing = _decoded(entry)
    return [] if standing is None else standing.instances or []


def _decoded(entry: Entry) -> RouteWanted | None:
    try:
        return RouteWanted.decode(entry.data)
    except InvalidInput:
        return None


def route_wanted(
    model: ModelRow, rows: tuple[InstanceRow, ...], external: list[ExternalEndpoint]
) -> RouteWanted:
    """A running model's route; instances that are to stop are not listed."""
    assert model.spec is not None
    engine = engine_of(model.spec.engine_type)
    return RouteWanted(
        model_id=model.id,
        model=model.name,
        served_model_name=model.served_model_name,
        aliases=list(model.spec.aliases),
        task=model.spec.task,
        engine=engine.kind(model.spec),
        created=int(model.created_at.timestamp()),
        context_length=engine.context_length(model.spec),
        policy=model.spec.policy,
        external=external,
        instances=None if engine.program is None else sorted(row.id for row in rows if row.desired == "run"),
        placed=None if engine.program is None else {row.id: row.node for row in rows if row.desired == "run"},
    )
