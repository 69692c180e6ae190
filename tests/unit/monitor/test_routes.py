"""State and projection: what is routed, and what never removes a route or an endpoint."""

from datetime import UTC, datetime, timedelta

import pytest
from cortex_monitor.settings import EjectionSettings, LivenessSettings
from cortex_monitor.state import FleetState
from cortex_shared.contracts.observed import InstanceObserved, NodeObserved, Phase
from cortex_shared.contracts.routes import ExternalEndpoint, Route, RoutingTable
from cortex_shared.contracts.verdicts import NodeVerdict

from tests.unit.monitor.fleet import WALL, evidence, instance, manifest, node, wanted


class Fleet:
    """A state with a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.state = FleetState(LivenessSettings(), EjectionSettings())

    def hear(self, observed: NodeObserved, *, heard: bool = True) -> bool:
        return self.state.fold_observed(observed, self.now, wall=WALL, heard=heard)

    def gateways_see(self, name: str, *, successes: int = 0, connect_failures: int = 0) -> bool:
        told = evidence(name, successes=successes, connect_failures=connect_failures)
        return self.state.fold_evidence(told, self.now)

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.state.judge(self.now, WALL)

    def endpoints(self, model_id: int = 1) -> list[str]:
        route = next(route for route in self.state.routes(self.now) if route.model_id == model_id)
        return [endpoint.instance for endpoint in route.endpoints]

    def routes(self) -> list[Route]:
        return self.state.routes(self.now)


@pytest.fixture
def fleet() -> Fleet:
    """One model, wanted and listed."""
    fleet = Fleet()
    fleet.state.fold_wanted(wanted())
    fleet.state.fold_manifest(manifest(1))
    return fleet


def table(*routes: Route, fleet: str | None = None, epoch: int = 0) -> RoutingTable:
    return RoutingTable(
        term=1, version=1, written_at=datetime.now(UTC), routes=list(routes), fleet=fleet, epoch=epoch
    )


@pytest.mark.parametrize(
    ("phases", "state", "count"),
    [
        ((), "starting", 0),
        (("placed",), "starting", 0),
        (("fetching", "loading"), "loading", 0),
        (("ready",), "running", 1),
        (("ready", "ready"), "running", 2),
        (("ready", "loading"), "degraded", 1),
        (("ready", "stopping"), "running", 1),
        (("failed",), "failed", 0),
        (("failed", "starting"), "starting", 0),
        (("stuck",), "degraded", 0),
        (("unready",), "degraded", 0),
        (("stopping", "stopped"), "stopping", 0),
        (("stopped",), "stopped", 0),
    ],
)
def test_the_state_of_a_route_follows_from_its_instances(
    fleet: Fleet, phases: tuple[Phase, ...], state: str, count: int
) -> None:
    fleet.hear(node("n", 1, *(instance(f"i{n}", phase) for n, phase in enumerate(phases))))
    (route,) = fleet.routes()
    assert (route.state, len(route.endpoints)) == (state, count)


def test_a_phase_change_is_news_and_a_mere_heartbeat_is_not(fleet: Fleet) -> None:
    assert fleet.hear(node("n", 1, instance("a", "loading")))
    assert not fleet.hear(node("n", 2, instance("a", "loading")))
    assert fleet.hear(node("n", 3, instance("a", "ready")))
    assert fleet.hear(node("n", 4))
    assert fleet.endpoints() == []


def test_only_instances_that_are_wanted_serve(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a"), instance("b"), instance("c", model_id=2)))
    assert fleet.endpoints() == ["a", "b"]
    fleet.state.fold_wanted(wanted(instances=["b"]))
    assert fleet.endpoints() == ["b"]


def test_a_node_that_claims_an_instance_of_another_is_not_believed(fleet: Fleet) -> None:
    placed = wanted(instances=["a"]).model_copy(update={"placed": {"a": "n1"}})
    fleet.state.fold_wanted(placed)
    fleet.hear(node("n1", 1, instance("a")))
    fleet.hear(node("n2", 1, instance("a", generation=9, port=1)))
    (route,) = fleet.routes()
    assert [(endpoint.node, endpoint.url) for endpoint in route.endpoints] == [
        ("n1", "http://a.invalid:20000")
    ]


def test_instances_of_another_fleet_do_not_serve(fleet: Fleet) -> None:
    stranger = instance("x").model_copy(update={"fleet": "other"})
    fleet.hear(node("n", 1, stranger, instance("a")))
    assert fleet.endpoints() == ["a"]


def test_external_endpoints_pass_through_with_their_keys(fleet: Fleet) -> None:
    outside = ExternalEndpoint(
        id="cloud", url="https://cloud", weight=2, model="big", sealed_key="v1.x", tls_verify=False, ca="pem"
    )
    fleet.state.fold_wanted(wanted().model_copy(update={"external": [outside]}))
    (route,) = fleet.routes()
    assert route.state == "starting"
    (endpoint,) = route.endpoints
    assert (endpoint.instance, endpoint.url, endpoint.weight) == ("cloud", "https://cloud", 2)
    assert (endpoint.model, endpoint.sealed_key, endpoint.node) == ("big", "v1.x", None)
    assert (endpoint.external, endpoint.tls_verify, endpoint.ca) == (True, False, "pem")


def test_a_route_goes_only_when_a_manifest_of_the_fleet_omits_it(fleet: Fleet) -> None:
    fleet.state.fold_manifest(manifest(1, epoch=5))
    fleet.state.fold_manifest(manifest(epoch=4))
    assert len(fleet.routes()) == 1
    fleet.state.fold_manifest(manifest(epoch=9, fleet="other"))
    assert len(fleet.routes()) == 1
    fleet.state.fold_manifest(manifest(epoch=5))
    assert fleet.routes() == []


def test_a_listed_model_whose_wish_is_missing_keeps_its_route(fleet: Fleet) -> None:
    fleet.state.fold_manifest(manifest(1, 2, epoch=2))
    assert [route.model_id for route in fleet.routes()] == [1]


def test_a_wish_appears_with_the_manifest_that_lists_it(fleet: Fleet) -> None:
    fleet.state.fold_wanted(wanted(2))
    assert [route.model_id for route in fleet.routes()] == [1]
    fleet.state.fold_manifest(manifest(1, 2, epoch=2))
    assert [route.model_id for route in fleet.routes()] == [1, 2]


def test_two_models_of_one_name_do_not_make_two_routes(fleet: Fleet) -> None:
    twin = wanted(2).model_copy(update={"served_model_name": "served-1", "aliases": ["served-1"]})
    third = wanted(3).model_copy(update={"aliases": ["served-1", "extra", "extra"]})
    for wish in (twin, third):
        fleet.state.fold_wanted(wish)
    fleet.state.fold_manifest(manifest(1, 2, 3, epoch=2))
    assert [(r.name, r.model_id, r.aliases) for r in fleet.routes()] == [
        ("served-1", 1, []),
        ("served-3", 3, ["extra"]),
    ]


def test_the_order_does_not_depend_on_who_spoke_first() -> None:
    orders: list[list[Route]] = []
    for names in (("a", "b"), ("b", "a")):
        fleet = Fleet()
        for model_id in (2, 1) if names[0] == "a" else (1, 2):
            fleet.state.fold_wanted(wanted(model_id))
        for name in names:
            fleet.hear(node(name, 1, instance(f"i-{name}")))
        orders.append(fleet.routes())
    assert orders[0] == orders[1]


def test_a_silent_node_stays_until_it_is_lost_and_returns_when_heard(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a")))
    fleet.after(29)
    assert fleet.endpoints() == ["a"]
    fleet.after(2)
    assert fleet.endpoints() == []
    assert fleet.hear(node("n", 2, instance("a")))
    fleet.after(0)
    assert fleet.endpoints() == ["a"]


def test_a_silent_node_whose_engines_answer_stays(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a")))
    for _ in range(60):
        fleet.gateways_see("a", successes=1)
        fleet.after(5)
        assert fleet.endpoints() == ["a"]


def test_silence_and_refused_connections_together_take_even_the_last_endpoint(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a")))
    fleet.after(10)
    fleet.gateways_see("a", connect_failures=1)
    assert fleet.endpoints() == []


def test_a_value_read_again_proves_no_life(fleet: Fleet) -> None:
    fleet.hear(node("n", 7, instance("a")))
    fleet.after(29)
    fleet.hear(node("n", 7, instance("a")))
    fleet.hear(node("n", 8, instance("a")), heard=False)
    fleet.after(2)
    assert fleet.endpoints() == []


def test_an_older_state_from_a_restored_store_is_not_believed(fleet: Fleet) -> None:
    fleet.hear(node("n", 7, instance("a")))
    assert not fleet.hear(node("n", 3, instance("a", "loading")), heard=False)
    earlier_agent = node("n", 99, instance("a", "loading")).model_copy(
        update={"agent_started_at": WALL - timedelta(days=1)}
    )
    assert not fleet.hear(earlier_agent, heard=False)
    assert fleet.endpoints() == ["a"]
    # Of an agent that speaks now it is believed: its host's clock may have been set back.
    assert fleet.hear(earlier_agent)
    assert fleet.endpoints() == []


def test_evidence_takes_one_of_two_out_and_lets_it_try_again(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a"), instance("b")))
    assert fleet.gateways_see("a", connect_failures=3)
    assert fleet.endpoints() == ["b"]
    fleet.after(5.1)
    assert fleet.endpoints() == ["a", "b"]
    fleet.gateways_see("a", connect_failures=1)
    fleet.after(5.1)
    assert fleet.endpoints() == ["b"]
    fleet.after(5)
    assert fleet.endpoints() == ["a", "b"]


def test_the_time_out_has_a_bound(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a"), instance("b")))
    for _ in range(40):
        fleet.gateways_see("a", connect_failures=1)
        fleet.now += 60.1
    assert fleet.endpoints() == ["a", "b"]


def test_a_recent_success_outweighs_a_failed_connection(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a"), instance("b")))
    fleet.gateways_see("a", successes=1)
    fleet.now += 2
    assert not fleet.gateways_see("a", connect_failures=1)
    assert fleet.endpoints() == ["a", "b"]


def test_a_success_brings_it_back_at_once(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a"), instance("b")))
    fleet.gateways_see("a", connect_failures=1)
    assert fleet.gateways_see("a", successes=1)
    assert fleet.endpoints() == ["a", "b"]


def test_a_ready_heartbeat_brings_it_back_once_but_not_against_repeated_evidence(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a"), instance("b")))
    fleet.gateways_see("a", connect_failures=1)
    assert fleet.hear(node("n", 2, instance("a"), instance("b")))
    assert fleet.endpoints() == ["a", "b"]
    fleet.gateways_see("a", connect_failures=1)
    assert not fleet.hear(node("n", 3, instance("a"), instance("b")))
    assert fleet.endpoints() == ["b"]
    assert fleet.hear(node("n", 4, instance("a", restarts=1), instance("b")))
    assert fleet.endpoints() == ["a", "b"], "a restarted engine is another engine"


def test_evidence_alone_never_takes_the_last_endpoint(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a"), instance("b")))
    fleet.gateways_see("b", successes=1)
    fleet.now += 4
    for name in "ab":
        fleet.gateways_see(name, connect_failures=1)
    assert fleet.endpoints() == ["b"], "the one that answered last"


def test_frozen_nodes_keep_their_endpoints_whatever_is_said(fleet: Fleet) -> None:
    for name in "abc":
        fleet.hear(node(f"n{name}", 1, instance(name)))
    fleet.after(9)
    fleet.gateways_see("a", connect_failures=1)
    fleet.after(1000)
    assert fleet.endpoints() == ["a", "b", "c"]
    fleet.hear(node("na", 2, instance("a")))
    fleet.hear(node("nb", 2, instance("b")))
    fleet.after(0)
    assert fleet.endpoints() == ["a", "b", "c"]
    for beat in range(3, 20):
        fleet.hear(node("na", beat, instance("a")))
        fleet.hear(node("nb", beat, instance("b")))
        fleet.after(2)
    assert fleet.endpoints() == ["a", "b"]


def test_a_new_monitor_goes_on_from_the_table(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a")))
    found = table(*fleet.routes(), fleet="fleet-1", epoch=7)
    new = Fleet()
    new.state.adopt(found, new.now)
    assert new.routes() == found.routes
    new.state.fold_manifest(manifest(epoch=6))
    assert new.routes() == found.routes, "a manifest older than the table's removes nothing"
    new.after(59)
    assert new.endpoints() == ["a"]
    new.after(2)
    assert new.endpoints() == []


def test_adopted_endpoints_stay_while_they_answer_and_yield_to_what_the_node_says(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a"), instance("b")))
    new = Fleet()
    new.state.adopt(table(*fleet.routes()), new.now)
    for _ in range(30):
        new.gateways_see("a", successes=1)
        new.after(5)
    assert new.endpoints() == ["a", "b"]
    new.hear(node("n", 2, instance("b")))
    assert new.endpoints() == ["b"]


def test_a_node_lost_before_the_monitors_restart_is_not_routed_again(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a")), heard=False)
    fleet.state.fold_verdict(NodeVerdict(node="n", verdict="lost", since=WALL))
    fleet.after(1)
    assert fleet.endpoints() == []
    fleet.hear(node("n", 2, instance("a")))
    fleet.after(0)
    assert fleet.endpoints() == ["a"]


def test_a_lost_node_is_forgotten_only_when_its_key_is_gone(fleet: Fleet) -> None:
    fleet.hear(node("n", 1, instance("a")))
    assert fleet.state.forget([]) == []
    fleet.after(31)
    assert fleet.state.forget(["n"]) == []
    assert fleet.state.forget([]) == ["n"]


def test_an_instance_seen_on_two_nodes_serves_from_the_newer(fleet: Fleet) -> None:
    moved: InstanceObserved = instance("a", generation=2).model_copy(update={"url": "http://new:1"})
    fleet.hear(node("m", 1, moved))
    fleet.hear(node("n", 1, instance("a", generation=1)))
    (route,) = fleet.routes()
    assert [endpoint.url for endpoint in route.endpoints] == ["http://new:1"]
