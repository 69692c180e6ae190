"""Watch: hears nodes, wishes and gateways, judges, and offers routes. The one owner of the state."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from cortex_shared.bus import Bus, Mirror, Msg
from cortex_shared.clock import utc_now
from cortex_shared.contracts import evidence
from cortex_shared.contracts.evidence import GatewayEvidence
from cortex_shared.contracts.external import ExternalObserved
from cortex_shared.contracts.observed import NodeObserved
from cortex_shared.contracts.routes import WANTED_MANIFEST, Route, RouteWanted, RoutingTable, WantedManifest
from cortex_shared.contracts.verdicts import LEASE
from cortex_shared.errors import InvalidInput
from cortex_shared.logs import get_logger
from cortex_shared.routing_store import RoutingStore

from cortex_monitor.doors import Doors
from cortex_monitor.event_log import EventLog, endpoint_event, fleet_event, route_event, verdict_event
from cortex_monitor.external_writer import ExternalWriter
from cortex_monitor.externals import Standing
from cortex_monitor.lease import Lease
from cortex_monitor.liveness import Judgement
from cortex_monitor.prober import Prober
from cortex_monitor.publisher import Offer, Publisher
from cortex_monitor.settings import Settings
from cortex_monitor.state import FleetState, Node
from cortex_monitor.verdict_writer import VerdictWriter

_log = get_logger("watch")

_TICK_SECONDS = 1.0
_FORGET_SECONDS = 60.0
# Silent for so many renewals of the lease, whose echo comes back through NATS: we are deaf, not they dumb.
_DEAF_RENEWALS = 3.5


type OnWritten = Callable[[Offer, float], None]


@dataclass(frozen=True)
class Mirrors:
    """What the monitor follows in NATS; each must be run as a task."""

    observed: Mirror
    wanted: Mirror
    verdicts: Mirror
    external: Mirror


class Watch:
    """Wakes on every change, folds what came, and offers the routes that follow; judges once a second."""

    def __init__(
        self,
        bus: Bus,
        state: FleetState,
        store: RoutingStore,
        settings: Settings,
        *,
        mirrors: Mirrors,
        name: str,
        on_written: OnWritten,
    ) -> None:
        self._bus = bus
        self._state = state
        self._settings = settings
        self._mirrors = mirrors
        self._on_written = on_written
        self._wake = anyio.Event()
        self._dirty: set[str] = set()
        self._all_dirty = True
        self._wanted_dirty = True
        self._changed_at: float | None = None
        self._adopted: tuple[RoutingTable | None] | None = None
        self._began_at = math.inf
        self._settled_at = math.inf
        self._held_back = False
        self._return_at = math.inf
        self._pulse_at = -math.inf
        self._hearing = False
        self._frozen = 0
        self._standings: dict[str, Standing] = {}
        self.lease = Lease(bus, mirrors.verdicts, store, settings.lease, name=name)
        self.publisher = Publisher(store, self.lease, on_adopt=self._adopt, on_write=self._wrote)
        self._verdicts = VerdictWriter(bus, mirrors.verdicts, state, self.lease)
        self._events = EventLog(bus, name=name)
        self._doors = Doors(state)
        self._external_writer = ExternalWriter(
            bus, mirrors.external, state, self.lease, on_change=self._tell_external
        )
        self._prober = Prober(
            state.externals,
            settings.probe,
            fleet_secret=settings.engine_secret.get_secret_value(),
            held=lambda: self.lease.held,
            found=self._found_external,
        )
        self.lease.on_change(self._prober.wake)
        mirrors.observed.on_change(self._observed_changed)
        mirrors.wanted.on_change(self._wanted_changed)
        mirrors.verdicts.on_change(self._verdicts_changed)

    async def run(self) -> None:
        """Watch until cancelled, with all parts that it has."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.lease.run)
            group.start_soon(self.publisher.run)
            group.start_soon(self._verdicts.run)
            group.start_soon(self._events.run)
            group.start_soon(self._doors.run)
            group.start_soon(self._external_writer.run)
            group.start_soon(self._prober.run)
            group.start_soon(self._bus.listen, evidence.SUBJECTS, self._heard_gateway)
            await self._look()

    async def _look(self) -> None:
        mirrors = self._mirrors
        for mirror in (mirrors.observed, mirrors.wanted, mirrors.verdicts, mirrors.external):
            await mirror.wait_synced()
        self._began_at = ticked_at = time.monotonic()
        self._fold(ticked_at)
        self._load_verdicts()
        forgot_at = ticked_at
        while True:
            now = time.monotonic()
            due = now - ticked_at >= _TICK_SECONDS
            if now - ticked_at > 3 * _TICK_SECONDS:
                # We were stopped, or starved: what was sent meanwhile is still to be read.
                self._state.be_patient(now)
            self._fold(now)
            if due or self._changed_at is not None:
                self._judge(now)
            if due:
                ticked_at = now
                self._judge_externals(now)
                if now - forgot_at > _FORGET_SECONDS:
                    forgot_at = now
                    self._state.forget(self._mirrors.observed.entries.keys())
            self._offer(now)
            next_at = min(ticked_at + _TICK_SECONDS, self._return_at)
            with anyio.move_on_after(max(0, next_at - time.monotonic())):
                await self._wake.wait()
            self._wake = anyio.Event()

    def _observed_changed(self, key: str | None) -> None:
        if key is None:
            self._all_dirty = True
            self._dirty.clear()
        else:
            self._dirty.add(key)
        self._wake.set()

    def _wanted_changed(self, _: str | None) -> None:
        self._wanted_dirty = True
        self._wake.set()

    def _verdicts_changed(self, key: str | None) -> None:
        if key == LEASE:
            self._pulse_at = time.monotonic()

    def _adopt(self, table: RoutingTable | None) -> None:
        self._adopted = (table,)
        self._wake.set()

    async def _heard_gateway(self, message: Msg) -> None:
        try:
            heard = GatewayEvidence.decode(message.data)
        except InvalidInput as error:
            _log.warning("evidence.unreadable", error=error.message)
            return
        if self._state.fold_evidence(heard, time.monotonic()):
            self._note_change()
            self._wake.set()

    def _note_change(self) -> None:
        if self._changed_at is None:
            self._changed_at = time.monotonic()

    def _fold(self, now: float) -> None:
        changed = False
        if self._wanted_dirty:
            self._wanted_dirty = False
            changed |= self._fold_wanted()
        keys, heard = self._dirty, True
        if self._all_dirty:
            keys, heard, self._all_dirty = set(self._mirrors.observed.entries), False, False
        self._dirty = set()
        for key in keys:
            changed |= self._fold_observed(key, now, heard=heard)
        if self._adopted is not None:
            (table,), self._adopted = self._adopted, None
            self._begin_term(table, now)
            changed = True
        if changed:
            self._note_change()

    def _begin_term(self, table: RoutingTable | None, now: float) -> None:
        if table is None:
            self._settled_at = max(now, self._began_at + self._settings.settle_seconds)
            return
        self._settled_at = now
        self._state.adopt(table, now)
        self._load_verdicts()
        self._follow_externals()

    def _fold_wanted(self) -> bool:
        # Wishes are few and change seldom: all are looked at each time, the manifest first.
        changed = False
        entries = self._mirrors.wanted.entries
        try:
            if (entry := entries.get(WANTED_MANIFEST)) is not None:
                present = {int(key) for key in entries if key.isdigit()}
                changed |= self._state.fold_manifest(WantedManifest.decode(entry.data), present=present)
        except InvalidInput as error:
            _log.error("manifest.unreadable", error=error.message)
        for key, entry in entries.items():
            if key == WANTED_MANIFEST:
                continue
            try:
                changed |= self._state.fold_wanted(RouteWanted.decode(entry.data))
            except InvalidInput as error:
                _log.error("wanted.unreadable", key=key, error=error.message)
        self._follow_externals()
        return changed

    def _follow_externals(self) -> None:
        if self._state.follow_externals(utc_now()):
            self._state.externals.seed(self._external_writer.stored())
            self._prober.wake()

    def _judge_externals(self, now: float) -> None:
        """Time alone changes how they stand: what gateways saw is evidence for a while."""
        standings = self._state.external_standings(now)
        if standings != self._standings:
            self._standings = standings
            self._note_change()
        self._external_writer.tell(now)

    def _found_external(self, ident: str, well: bool, news: bool) -> None:
        now = time.monotonic()
        if (well and self._state.ejections.ready(ident, "", now)) or news:
            self._note_change()
            self._wake.set()
            self._external_writer.tell(now)

    def _tell_external(self, found: ExternalObserved, before: ExternalObserved | None) -> None:
        known = {} if before is None else {endpoint.id: endpoint.state for endpoint in before.endpoints}
        for endpoint in found.endpoints:
            if endpoint.state != "starting" and endpoint.state != known.get(endpoint.id, "starting"):
                self._events.add_route(endpoint_event(found.model_id, endpoint))

    def _fold_observed(self, key: str, now: float, *, heard: bool) -> bool:
        entry = self._mirrors.observed.entries.get(key)
        if entry is None:
            return False  # absence never removes
        try:
            observed = NodeObserved.decode(entry.data)
        except InvalidInput as error:
            _log.error("observed.unreadable", node=key, error=error.message)
            return False
        if observed.node != key:
            # NATS lets a node write its own key only; under it, it may speak for nobody else.
            _log.error("observed.refused", node=key, claims=observed.node)
            return False
        return self._state.fold_observed(observed, now, wall=utc_now(), heard=heard)

    def _load_verdicts(self) -> None:
        for verdict in self._verdicts.stored():
            self._state.fold_verdict(verdict)

    def _judge(self, now: float) -> None:
        deaf_after = _DEAF_RENEWALS * self._settings.lease.renew_seconds
        hearing = self._mirrors.observed.synced and now - self._pulse_at < deaf_after
        if hearing != self._hearing:
            self._hearing = hearing
            _log.info("watch.hears" if hearing else "watch.deaf")
            self._state.be_patient(now)
        if not hearing:
            return
        for node, before in self._state.judge(now, utc_now()):
            self._verdicts.hint(node.name)
            if before.verdict != node.judgement.verdict:
                self._note_change()
                self._tell_verdict(node, before)
        self._tell_frozen()

    def _tell_verdict(self, node: Node, before: Judgement) -> None:
        verdict = node.judgement.verdict
        _log.info("node.judged", node=node.name, verdict=verdict, before=before.verdict)
        if self.lease.held:
            self._events.add(verdict_event(node.name, node.judgement))

    def _tell_frozen(self) -> None:
        frozen = sum(node.judgement.verdict == "frozen" for node in self._state.nodes.values())
        if bool(frozen) != bool(self._frozen) and self.lease.held:
            self._events.add(fleet_event(frozen, len(self._state.nodes)))
        self._frozen = frozen

    def _offer(self, now: float) -> None:
        settled = now >= self._settled_at
        if self._changed_at is None and now < self._return_at and not (self._held_back and settled):
            return
        since = now if self._changed_at is None else self._changed_at
        self._changed_at = None
        self._return_at = self._state.ejections.next_return(now)
        manifest = self._state.manifest
        if manifest is None and not self._state.wanted:
            return  # nothing is known: gateways do better with what they have
        routes = self._state.routes(now)
        # With no table to go on from, routes without endpoints may be those of nodes that only just begin
        # to report; written at once they would end the traffic of gateways that know better.
        self._held_back = not settled and any(not route.endpoints for route in routes)
        if not self._held_back:
            fleet, epoch = (None, 0) if manifest is None else (manifest.fleet, manifest.epoch)
            self.publisher.offer(Offer(routes, fleet, epoch, since))

    def _wrote(self, before: list[Route], offer: Offer) -> None:
        self._on_written(offer, time.monotonic())
        old = {route.model_id: route for route in before}
        for route in offer.routes:
            was = old.pop(route.model_id, None)
            if was is None or (was.state, was.endpoints) != (route.state, route.endpoints):
                event = route_event(
                    route.name, route.model_id, state=route.state, endpoints=len(route.endpoints)
                )
                self._events.add_route(event)
        for gone in old.values():
            self._events.add_route(route_event(gone.name, gone.model_id, state="removed", endpoints=0))
