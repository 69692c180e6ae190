"""Last-known state of the fleet. It survives an empty NATS: what is absent from a store changes nothing."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from cortex_shared.contracts.evidence import GatewayEvidence
from cortex_shared.contracts.external import ExternalObserved
from cortex_shared.contracts.observed import InstanceObserved, NodeObserved
from cortex_shared.contracts.routes import Endpoint, Route, RouteWanted, RoutingTable, WantedManifest
from cortex_shared.contracts.verdicts import NodeVerdict
from cortex_shared.logs import get_logger

from cortex_monitor.ejections import Ejections
from cortex_monitor.externals import Externals, Standing
from cortex_monitor.liveness import NEVER, Judgement, NodeFacts, judge
from cortex_monitor.projection import Candidate, project, routed, wanted_from
from cortex_monitor.settings import EjectionSettings, LivenessSettings, ProbeSettings

_log = get_logger("state")

_HEARTBEAT_SECONDS = 2.5


@dataclass(slots=True)
class Node:
    """One node. `observed` None: known only by the endpoints that an earlier table gave it (`adopted`)."""

    name: str
    heard_at: float
    heard: bool = False
    heard_wall: datetime | None = None
    patient_from: float = NEVER
    reached_at: float = NEVER
    observed: NodeObserved | None = None
    adopted: dict[str, tuple[int, Endpoint]] = field(default_factory=dict[str, tuple[int, Endpoint]])
    judgement: Judgement = field(default_factory=lambda: Judgement("live"))
    since: datetime | None = None

    def instances(self) -> Collection[str]:
        """Ids of the instances that it has."""
        if self.observed is None:
            return self.adopted.keys()
        return [instance.instance for instance in self.observed.instances]

    def urls(self) -> list[str]:
        """Where its ready engines listen."""
        if self.observed is None:
            return [endpoint.url for _, endpoint in self.adopted.values()]
        return [seen.url for seen in self.observed.instances if seen.url and seen.phase == "ready"]


class FleetState:
    """Folds what is heard; gives verdicts and routes. `now` is monotonic seconds everywhere."""

    def __init__(
        self, liveness: LivenessSettings, ejection: EjectionSettings, probe: ProbeSettings | None = None
    ) -> None:
        self._rules = liveness
        self.externals = Externals(probe or ProbeSettings())
        self.ejections = Ejections(ejection)
        self.nodes: dict[str, Node] = {}
        self.wanted: dict[int, RouteWanted] = {}
        self.manifest: WantedManifest | None = None
        self._known: set[str] = set()

    def fold_observed(self, observed: NodeObserved, now: float, *, wall: datetime, heard: bool) -> bool:
        """Take in a node's state; True if routes may follow from it.

        `heard`: it arrived just now. A value read from the bucket may be of any age and proves no life.
        """
        node = self.nodes.get(observed.node)
        if node is None:
            node = self.nodes[observed.node] = Node(observed.node, heard_at=now)
        before = node.observed
        same_agent = before is not None and before.agent_started_at == observed.agent_started_at
        if before is not None and not heard and observed.agent_started_at < before.agent_started_at:
            return False  # of an older store, and of an earlier agent
        if same_agent and before is not None and observed.heartbeat < before.heartbeat:
            return False  # of an older store
        repeated = same_agent and before is not None and observed.heartbeat == before.heartbeat
        if heard and not repeated:
            node.heard, node.heard_at, node.heard_wall = True, now, wall
        node.observed = observed
        node.adopted = {}
        changed = before is None or _relevant(before) != _relevant(observed)
        if changed:
            self._known.update(node.instances())  # those that left are dropped by `forget`
        if heard and not repeated:
            for instance in observed.instances:
                if instance.phase == "ready":
                    changed |= self.ejections.ready(instance.instance, _life(instance), now)
        # Heard again: routes may get its endpoints back, and nobody should wait a second for that.
        return changed or (node.heard and node.judgement.verdict != "live")

    def fold_wanted(self, wanted: RouteWanted) -> bool:
        """Take in a wanted route; True if it is news."""
        changed = self.wanted.get(wanted.model_id) != wanted
        self.wanted[wanted.model_id] = wanted
        self._known.update(endpoint.id for endpoint in wanted.external)
        return changed

    def fold_manifest(self, manifest: WantedManifest, *, present: Collection[int] = ()) -> bool:
        """Take in the list of routed models; True if it is news.

        One of another fleet, or older than the newest seen, is not obeyed. Omitted models are forgotten,
        except those whose wish is still `present` in the bucket.
        """
        known = self.manifest
        if known is not None and (manifest.fleet != known.fleet or manifest.epoch < known.epoch):
            _log.warning("manifest.ignored", fleet=manifest.fleet, epoch=manifest.epoch)
            return False
        self.manifest = manifest
        keep = {*manifest.models, *present}
        self.wanted = {key: wanted for key, wanted in self.wanted.items() if key in keep}
        return known != manifest

    def fold_evidence(self, evidence: GatewayEvidence, now: float) -> bool:
        """Take in what a gateway saw; True if an endpoint goes out or comes back."""
        return self.ejections.fold(evidence, now, known=self._known.__contains__)

    def follow_externals(self, wall: datetime) -> bool:
        """Watch the external servers that are wanted now; True if any is to be looked at anew."""
        return self.externals.follow(routed(self.wanted, self.manifest), wall)

    def external_standings(self, now: float) -> dict[str, Standing]:
        """How each external endpoint stands."""
        return self.externals.standings(self.ejections.records, now)

    def external_observed(self, now: float, wall: datetime) -> Iterator[ExternalObserved]:
        """What is to be told of external servers, by model."""
        return self.externals.observed(self.ejections.records, now, wall)

    def fold_verdict(self, verdict: NodeVerdict) -> None:
        """Take in a verdict of an earlier monitor on a node not heard yet: who was lost stays lost."""
        node = self.nodes.get(verdict.node)
        if node is not None and not node.heard:
            node.judgement = Judgement(verdict.verdict, tuple(verdict.evidence))
            node.since, node.heard_wall = verdict.since, verdict.last_heard_at

    def adopt(self, table: RoutingTable, now: float) -> None:
        """Go on from a table found in Redis: routes and nodes not known otherwise are as it says."""
        known = self.manifest
        older = known is not None and known.fleet == table.fleet and known.epoch < table.epoch
        if table.fleet is not None and (known is None or older):
            # The table stands for the manifest that the last monitor saw: an older one removes no route.
            models = sorted({route.model_id for route in table.routes} | self.wanted.keys())
            self.manifest = WantedManifest(fleet=table.fleet, epoch=table.epoch, models=models)
        for route in table.routes:
            self.wanted.setdefault(route.model_id, wanted_from(route))
            for endpoint in route.endpoints:
                if endpoint.node is None:
                    continue
                node = self.nodes.setdefault(endpoint.node, Node(endpoint.node, heard_at=now))
                if node.observed is None:
                    node.adopted[endpoint.instance] = (route.model_id, endpoint)
        self._index()

    def doubted(self) -> dict[str, list[str]]:
        """Nodes that are silent or frozen, with the addresses of their engines."""
        doubted = (node for node in self.nodes.values() if node.judgement.verdict in ("silent", "frozen"))
        return {node.name: urls for node in doubted if (urls := node.urls())}

    def reached(self, name: str, now: float) -> None:
        """One of the node's engines accepted a connection."""
        node = self.nodes.get(name)
        if node is not None:
            node.reached_at = now

    def be_patient(self, now: float) -> None:
        """The monitor was deaf until now: silence before this moment says nothing."""
        for node in self.nodes.values():
            node.patient_from = now

    def judge(self, now: float, wall: datetime) -> list[tuple[Node, Judgement]]:
        """Judge all nodes; the nodes whose verdict or evidence changed, with the judgement before."""
        changed: list[tuple[Node, Judgement]] = []
        for name, judgement in judge(map(self._facts, self.nodes.values()), self._rules, now).items():
            node = self.nodes[name]
            before = node.judgement
            first = node.since is None
            if first or before.verdict != judgement.verdict:
                node.since = wall
            if before.verdict == "frozen" and judgement.verdict == "silent":
                node.patient_from = now
            node.judgement = judgement
            if first or before != judgement:
                changed.append((node, before))
        return changed

    def forget(self, present: Collection[str]) -> list[str]:
        """Forget lost nodes that are not `present` in the bucket, and evidence on unknown engines."""
        gone = [n for n, node in self.nodes.items() if node.judgement.verdict == "lost" and n not in present]
        for name in gone:
            del self.nodes[name]
        self._index()
        self.ejections.keep_only(self._known)
        return gone

    def routes(self, now: float) -> list[Route]:
        """The table as it should be now."""
        return project(self.wanted, self.manifest, self._candidates(now), self.external_standings(now))

    def _facts(self, node: Node) -> NodeFacts:
        records = [self.ejections.of(instance) for instance in node.instances()]
        return NodeFacts(
            node=node.name,
            heard=node.heard,
            heard_at=node.heard_at,
            patient_from=node.patient_from,
            heartbeat_seconds=node.observed.heartbeat_seconds if node.observed else _HEARTBEAT_SECONDS,
            verdict=node.judgement.verdict,
            answered_at=max((record.answered_at for record in records), default=NEVER),
            reached_at=node.reached_at,
            refused_at=max((record.refused_at for record in records), default=NEVER),
        )

    def _candidates(self, now: float) -> Iterator[Candidate]:
        for node in self.nodes.values():
            verdict = node.judgement.verdict
            for instance, (model_id, endpoint) in node.adopted.items():
                record = self.ejections.of(instance)
                yield Candidate(
                    instance=instance,
                    node=node.name,
                    model_id=model_id,
                    fleet=None,
                    generation=0,
                    phase="ready",
                    endpoint=endpoint,
                    verdict=verdict,
                    out=record.out_until > now,
                    answered_at=record.answered_at,
                )
            for seen in node.observed.instances if node.observed else ():
                record = self.ejections.of(seen.instance)
                endpoint = (
                    Endpoint(instance=seen.instance, node=node.name, url=seen.url) if seen.url else None
                )
                yield Candidate(
                    instance=seen.instance,
                    node=node.name,
                    model_id=seen.model_id,
                    fleet=seen.fleet,
                    generation=seen.generation,
                    phase=seen.phase,
                    endpoint=endpoint,
                    verdict=verdict,
                    out=record.out_until > now,
                    answered_at=record.answered_at,
                )

    def _index(self) -> None:
        self._known = {instance for node in self.nodes.values() for instance in node.instances()}
        self._known.update(endpoint.id for wanted in self.wanted.values() for endpoint in wanted.external)


def _relevant(observed: NodeObserved) -> list[tuple[object, ...]]:
    return [
        (seen.instance, seen.phase, seen.url, seen.model_id, seen.fleet, seen.generation)
        for seen in observed.instances
    ]


def _life(seen: InstanceObserved) -> str:
    return f"{seen.url} {seen.generation} {seen.restarts} {seen.ready_at}"
