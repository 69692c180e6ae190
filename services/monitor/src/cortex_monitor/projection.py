"""Project the routing table: wanted routes and known instances, in; routes, out. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cortex_shared.contracts.external import state_of_all
from cortex_shared.contracts.observed import Phase
from cortex_shared.contracts.routes import (
    Endpoint,
    ExternalEndpoint,
    Route,
    RouteWanted,
    Server,
    WantedManifest,
)
from cortex_shared.contracts.verdicts import Verdict

from cortex_monitor import externals
from cortex_monitor.externals import Standing
from cortex_monitor.liveness import NEVER

_STATES: list[tuple[str, frozenset[Phase]]] = [
    ("loading", frozenset({"loading"})),
    ("starting", frozenset({"placed", "fetching", "starting"})),
    ("degraded", frozenset({"ready", "stuck", "unready"})),
    ("failed", frozenset({"failed"})),
    ("stopping", frozenset({"stopping"})),
    ("stopped", frozenset({"stopped"})),
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance that might serve. `fleet` None: known only from an earlier table.

    `out`: gateways cannot connect to it. `answered_at`: its last success, monotonic seconds.
    """

    instance: str
    node: str
    model_id: int
    fleet: str | None
    generation: int
    phase: Phase
    endpoint: Endpoint | None
    verdict: Verdict
    out: bool = False
    answered_at: float = NEVER


def project(
    wanted: Mapping[int, RouteWanted],
    manifest: WantedManifest | None,
    candidates: Iterable[Candidate],
    standings: Mapping[str, Standing],
) -> list[Route]:
    """The routes, by name. Only a manifest that omits a model removes its route.

    `standings`: of external endpoints, by id.
    """
    fleet = manifest.fleet if manifest is not None else None
    by_model: dict[int, dict[str, Candidate]] = {}
    for candidate in candidates:
        if fleet is not None and candidate.fleet is not None and candidate.fleet != fleet:
            continue
        if not _is_placed(wanted.get(candidate.model_id), candidate):
            continue
        of_model = by_model.setdefault(candidate.model_id, {})
        other = of_model.get(candidate.instance)
        if other is None or candidate.generation > other.generation:
            of_model[candidate.instance] = candidate
    models = routed(wanted, manifest)
    # Who came first keeps a name that two models claim; the API refuses such a pair, restores may make it.
    names: dict[str, RouteWanted] = {}
    for model in models:
        names.setdefault(model.served_model_name, model)
    taken = set(names)
    routes: list[Route] = []
    for model in models:
        if names[model.served_model_name] is model:
            aliases = [alias for alias in dict.fromkeys(model.aliases) if alias not in taken]
            taken.update(aliases)
            of_model = by_model.get(model.model_id, {}).values()
            routes.append(_route(model, aliases, of_model, standings))
    return sorted(routes, key=lambda route: route.name)


def _is_placed(wanted: RouteWanted | None, candidate: Candidate) -> bool:
    """Whether the node that claims the instance is the one on which the API placed it, as far as it says."""
    placed = wanted.placed if wanted is not None else None
    return placed is None or placed.get(candidate.instance, candidate.node) == candidate.node


def routed(wanted: Mapping[int, RouteWanted], manifest: WantedManifest | None) -> list[RouteWanted]:
    """Those that the manifest lists, in the order of their ids; all, when there is no manifest yet."""
    listed = None if manifest is None else set(manifest.models)
    return [wanted[key] for key in sorted(wanted) if listed is None or key in listed]


def _route(
    wanted: RouteWanted,
    aliases: list[str],
    candidates: Collection[Candidate],
    standings: Mapping[str, Standing],
) -> Route:
    if wanted.instances is not None:
        allowed = set(wanted.instances)
        candidates = [candidate for candidate in candidates if candidate.instance in allowed]
    ready = [candidate for candidate in candidates if candidate.phase == "ready" and candidate.endpoint]
    present = [candidate for candidate in ready if candidate.verdict != "lost"]
    external = [_external(endpoint) for endpoint in externals.serving(wanted.external, standings)]
    serving = _serving(present, spare=bool(external))
    endpoints = sorted(
        (candidate.endpoint for candidate in serving if candidate.endpoint),
        key=lambda endpoint: endpoint.instance,
    )
    return Route(
        name=wanted.served_model_name,
        aliases=aliases,
        model_id=wanted.model_id,
        task=wanted.task,
        engine=wanted.engine,
        created=wanted.created,
        context_length=wanted.context_length,
        state=_state(wanted, candidates, len(present), standings),
        policy=wanted.policy,
        endpoints=[*external, *endpoints],
    )


def _serving(present: list[Candidate], *, spare: bool) -> list[Candidate]:
    """Leave out what gateways cannot reach.

    Frozen nodes keep everything: when most of the fleet falls silent, evidence is as doubtful as silence.
    Evidence against a live node never takes a route's last endpoint; silence and evidence together may.
    """
    kept = [candidate for candidate in present if not candidate.out or candidate.verdict == "frozen"]
    if kept or spare:
        return kept
    accused = [candidate for candidate in present if candidate.verdict == "live"]
    if not accused:
        return []
    return [max(accused, key=lambda candidate: (candidate.answered_at, candidate.instance))]


def _state(
    wanted: RouteWanted,
    candidates: Collection[Candidate],
    present: int,
    standings: Mapping[str, Standing],
) -> str:
    if wanted.external:
        return state_of_all([standings.get(e.id, externals.UNKNOWN).state for e in wanted.external])
    staying = sum(candidate.phase not in ("stopping", "stopped") for candidate in candidates)
    count = len(wanted.instances) if wanted.instances is not None else staying
    if present:
        return "running" if present >= count else "degraded"
    phases = {candidate.phase for candidate in candidates}
    for state, of_state in _STATES:
        if phases & of_state:
            return state
    return "starting"


def _external(endpoint: ExternalEndpoint) -> Endpoint:
    return Endpoint(instance=endpoint.id, external=True, **_server(endpoint))


def _server(server: Server) -> dict[str, Any]:
    return {name: getattr(server, name) for name in Server.model_fields}


def wanted_from(route: Route) -> RouteWanted:
    """What must have been wanted for this route to be in a table, as far as the table says."""
    return RouteWanted(
        model_id=route.model_id,
        model=route.name,
        served_model_name=route.name,
        aliases=route.aliases,
        task=route.task,
        engine=route.engine,
        created=route.created,
        context_length=route.context_length,
        policy=route.policy,
        external=[
            ExternalEndpoint(id=endpoint.instance, **_server(endpoint))
            for endpoint in route.endpoints
            if endpoint.node is None
        ],
    )
