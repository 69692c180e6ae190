"""Whatever happens in whatever order: absence removes nothing, evidence alone never the last endpoint."""

from collections.abc import Iterable

from cortex_monitor.settings import EjectionSettings, LivenessSettings
from cortex_monitor.state import FleetState
from cortex_shared.contracts.observed import NodeObserved, Phase
from cortex_shared.contracts.routes import Route, RoutingTable
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.monitor.fleet import WALL, evidence, instance, manifest, node, wanted

NODES = ("n0", "n1", "n2")
MODELS = (1, 2)
PHASES: tuple[Phase, ...] = ("loading", "ready", "unready", "stopping", "failed")


def endpoints(routes: Iterable[Route]) -> set[tuple[int, str]]:
    return {(route.model_id, endpoint.instance) for route in routes for endpoint in route.endpoints}


class FleetMachine(RuleBasedStateMachine):
    """Three nodes with an instance of each of two models; a model of the test's own says what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.beat = 1
        self.epoch = 1
        self.listed: set[int] = set()
        self.phases: dict[str, Phase] = {}
        self.bucket: dict[str, NodeObserved] = {}
        self.state = FleetState(LivenessSettings(), EjectionSettings())

    def routes(self) -> list[Route]:
        return self.state.routes(self.now)

    @initialize()
    def begin(self) -> None:
        for model_id in MODELS:
            self.state.fold_wanted(wanted(model_id))
        self.list_models(set(MODELS))
        for name in NODES:
            self.heartbeat(name, "ready", "ready")

    def list_models(self, models: set[int]) -> None:
        self.listed = models
        self.epoch += 1
        self.state.fold_manifest(manifest(*models, epoch=self.epoch), present=MODELS)

    @rule(models=st.sets(st.sampled_from(MODELS)))
    def a_manifest(self, models: set[int]) -> None:
        self.list_models(models)

    @rule(models=st.sets(st.sampled_from(MODELS)), foreign=st.booleans())
    def a_manifest_that_does_not_count(self, models: set[int], foreign: bool) -> None:
        before = self.routes()
        if foreign:
            self.state.fold_manifest(manifest(*models, epoch=self.epoch + 5, fleet="other"))
        else:
            self.state.fold_manifest(manifest(*models, epoch=self.epoch - 1))
        assert self.routes() == before

    @rule(name=st.sampled_from(NODES), one=st.sampled_from(PHASES), two=st.sampled_from(PHASES))
    def heartbeat(self, name: str, one: Phase, two: Phase) -> None:
        self.beat += 1
        self.phases[f"{name}-1"], self.phases[f"{name}-2"] = one, two
        self.bucket[name] = node(
            name, self.beat, instance(f"{name}-1", one), instance(f"{name}-2", two, model_id=2)
        )
        self.state.fold_observed(self.bucket[name], self.now, wall=WALL, heard=True)
        self.state.judge(self.now, WALL)
        assert self.state.nodes[name].judgement.verdict == "live"

    @rule(kept=st.sets(st.sampled_from(NODES)))
    def nats_is_read_anew_and_some_nodes_are_missing(self, kept: set[str]) -> None:
        before = self.routes()
        for name in kept:
            self.state.fold_observed(self.bucket[name], self.now, wall=WALL, heard=False)
        self.state.be_patient(self.now)
        assert self.routes() == before

    @rule(names=st.sets(st.sampled_from(NODES)), model_id=st.sampled_from(MODELS), fails=st.booleans())
    def a_gateway_says(self, names: set[str], model_id: int, fails: bool) -> None:
        before = self.routes()
        for name in names:
            told = evidence(f"{name}-{model_id}", successes=not fails, connect_failures=fails)
            self.state.fold_evidence(told, self.now)
        live = {n for n, known in self.state.nodes.items() if known.judgement.verdict == "live"}
        for old, new in zip(before, self.routes(), strict=True):
            if any(endpoint.node in live for endpoint in old.endpoints):
                assert new.endpoints, "evidence alone took the last endpoint"

    @rule(seconds=st.sampled_from([0.5, 3.0, 7.0, 25.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.state.judge(self.now, WALL)

    @rule()
    def another_monitor_takes_over_with_empty_stores(self) -> None:
        before = self.routes()
        table = RoutingTable(
            term=1, version=1, written_at=WALL, routes=before, fleet="fleet-1", epoch=self.epoch
        )
        other = FleetState(LivenessSettings(), EjectionSettings())
        other.adopt(table, self.now)
        other.judge(self.now, WALL)
        after = other.routes(self.now)
        assert endpoints(after) == endpoints(before)
        assert [route.name for route in after] == [route.name for route in before]

    @invariant()
    def routed_is_what_is_listed(self) -> None:
        assert {route.model_id for route in self.routes()} == self.listed

    @invariant()
    def only_ready_instances_of_nodes_not_lost_serve(self) -> None:
        for route in self.routes():
            for endpoint in route.endpoints:
                assert self.phases[endpoint.instance] == "ready"
                assert endpoint.node is not None
                assert self.state.nodes[endpoint.node].judgement.verdict != "lost"

    @invariant()
    def looking_again_changes_nothing(self) -> None:
        self.state.judge(self.now, WALL)
        before = self.routes()
        assert self.state.judge(self.now, WALL) == []
        assert self.routes() == before

    @invariant()
    def frozen_nodes_lose_nothing(self) -> None:
        routed = endpoints(self.routes())
        for name, known in self.state.nodes.items():
            if known.judgement.verdict != "frozen":
                continue
            for model_id in self.listed:
                if self.phases[f"{name}-{model_id}"] == "ready":
                    assert (model_id, f"{name}-{model_id}") in routed


FleetMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestFleet = FleetMachine.TestCase
