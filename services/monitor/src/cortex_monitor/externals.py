"""External servers: their state, by what probes found and by what gateways say. No I/O."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from cortex_shared.contracts.external import EndpointObserved, ExternalObserved, ServerState
from cortex_shared.contracts.observed import Reason
from cortex_shared.contracts.routes import ExternalEndpoint, RouteWanted

from cortex_monitor.ejections import Record
from cortex_monitor.liveness import NEVER
from cortex_monitor.settings import ProbeSettings
from cortex_monitor.symptoms import Symptom

_STATES: tuple[ServerState, ...] = ("starting", "loading", "running", "failed")


@dataclass(frozen=True, slots=True)
class Target:
    """A server to look at: `model` is the name that requests have there."""

    model_id: int
    model: str
    engine: str
    endpoint: ExternalEndpoint


@dataclass(frozen=True, slots=True)
class Standing:
    """What counts for routing: the state, and which side says that it is bad."""

    state: ServerState
    reason: Reason | None = None
    probes_fail: bool = False
    gateways_fail: bool = False


UNKNOWN = Standing("starting")


@dataclass(slots=True)
class Watched:
    """A target, and what the last probes found. `next_at`: monotonic seconds; the rest is for people."""

    target: Target
    since: datetime
    state: ServerState = "starting"
    reason: Reason | None = None
    failures: int = 0
    next_at: float = NEVER
    latency_seconds: float | None = None
    checked_at: datetime | None = None
    shown: ServerState = "starting"


class Externals:
    """All external servers of the models that are wanted."""

    def __init__(self, settings: ProbeSettings) -> None:
        self._settings = settings
        self._watched: dict[str, Watched] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def ids(self) -> Collection[str]:
        """Ids of all endpoints."""
        return self._watched.keys()

    def all(self) -> Iterable[Watched]:
        """All that are watched."""
        return self._watched.values()

    def models(self) -> set[int]:
        """Ids of the models that have any."""
        return {watched.target.model_id for watched in self._watched.values()}

    def follow(self, wanted: Iterable[RouteWanted], wall: datetime) -> bool:
        """Watch what these want, and nothing else; True if anything is to be looked at anew.

        What changed other than its weight is looked at at once; until then it is as it was, since most
        changes (a new key, another name) leave a server that runs running.
        """
        kept: dict[str, Watched] = {}
        changed = False
        for model in wanted:
            for endpoint in model.external:
                name = endpoint.model or model.served_model_name
                plain = endpoint.model_copy(update={"weight": 1.0})
                target = Target(model.model_id, name, model.engine, plain)
                watched = self._watched.get(endpoint.id) or Watched(target, wall)
                if watched.target != target or watched.next_at == NEVER:
                    watched.target, watched.next_at = target, NEVER
                    changed = True
                kept[endpoint.id] = watched
        self._watched = kept
        return changed

    def seed(self, told: Iterable[ExternalObserved]) -> None:
        """Go on from what another monitor told, where that is newer than what this one knows."""
        for endpoint in (endpoint for observed in told for endpoint in observed.endpoints):
            watched = self._watched.get(endpoint.id)
            if watched is None or endpoint.state not in _STATES or not _is_newer(endpoint, watched):
                continue
            watched.state = watched.shown = endpoint.state
            watched.reason, watched.since = endpoint.reason, endpoint.since
            watched.latency_seconds, watched.checked_at = endpoint.latency_seconds, endpoint.checked_at

    def fold(
        self, target: Target, symptom: Symptom, *, wall: datetime, latency_seconds: float | None
    ) -> bool:
        """Take in what a probe found; True if that changes the state or the reason.

        One failure of a server that ran may be chance, unless it is `certain`.
        """
        watched = self._watched.get(target.endpoint.id)
        if watched is None or watched.target != target:
            return False  # it was asked for what is not wanted any more
        watched.checked_at = wall
        if latency_seconds is not None:
            watched.latency_seconds = latency_seconds
        watched.failures = watched.failures + 1 if symptom.state == "failed" else 0
        doubtful = watched.state == "running" and not symptom.certain
        if symptom.state == "failed" and doubtful and watched.failures < self._settings.failures_max:
            return False
        changed = (watched.state, watched.reason) != (symptom.state, symptom.reason)
        watched.state, watched.reason = symptom.state, symptom.reason
        return changed

    def standings(self, records: Mapping[str, Record], now: float) -> dict[str, Standing]:
        """How each endpoint stands; `records` is what gateways saw, times are monotonic."""
        return {
            ident: self._standing(watched, records.get(ident), now)
            for ident, watched in self._watched.items()
        }

    def _standing(self, watched: Watched, record: Record | None, now: float) -> Standing:
        url = watched.target.endpoint.url
        answered_at = NEVER if record is None else record.answered_at
        out = record is not None and record.out_until > now
        bad = watched.state in ("failed", "loading")
        if bad and now - answered_at <= self._settings.proof_seconds:
            # Rule: who is silent to the monitor is not dead while gateways get answers.
            said = "" if watched.reason is None else f": {watched.reason.message}"
            reason = Reason(
                code="external.only_gateways",
                message=f"{url} answers gateways, but not the monitor{said}",
                remedy="see the network between monitor and server, or set health_path",
            )
            return Standing("running", reason)
        if bad:
            return Standing(watched.state, watched.reason, probes_fail=True, gateways_fail=out)
        if out:
            reason = Reason(
                code="external.only_monitor",
                message=f"gateways cannot connect to {url}",
                remedy="see the network between gateways and server",
            )
            return Standing("failed", reason, gateways_fail=True)
        return Standing(watched.state, watched.reason)

    def observed(
        self, records: Mapping[str, Record], now: float, wall: datetime
    ) -> Iterator[ExternalObserved]:
        """What is to be told of each model."""
        standings = self.standings(records, now)
        by_model: dict[int, list[EndpointObserved]] = {}
        for ident, watched in self._watched.items():
            standing = standings[ident]
            if watched.shown != standing.state:
                watched.shown, watched.since = standing.state, wall
            by_model.setdefault(watched.target.model_id, []).append(
                EndpointObserved(
                    id=ident,
                    url=watched.target.endpoint.url,
                    state=standing.state,
                    since=watched.since,
                    reason=standing.reason,
                    latency_seconds=watched.latency_seconds,
                    checked_at=watched.checked_at,
                )
            )
        for model_id, endpoints in by_model.items():
            yield ExternalObserved(model_id=model_id, endpoints=endpoints)


def _is_newer(endpoint: EndpointObserved, watched: Watched) -> bool:
    if endpoint.checked_at is None:
        return False
    return watched.checked_at is None or endpoint.checked_at > watched.checked_at


def serving(
    endpoints: Collection[ExternalEndpoint], standings: Mapping[str, Standing]
) -> list[ExternalEndpoint]:
    """Those that are to be routed to.

    Any that are well leave the others out. If none is, those stay of which only one side says that they are
    bad: absence of traffic is no evidence, and a monitor may be cut off where gateways are not. One that says
    itself that it is loading is believed.
    """
    stands = [(endpoint, standings.get(endpoint.id, UNKNOWN)) for endpoint in endpoints]
    well = [endpoint for endpoint, standing in stands if standing.state in ("starting", "running")]
    return well or [
        endpoint
        for endpoint, standing in stands
        if standing.state != "loading" and not (standing.probes_fail and standing.gateways_fail)
    ]
