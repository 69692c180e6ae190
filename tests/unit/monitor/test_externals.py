"""External servers: what takes them out of the routes, what never does, and what is told of them."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from cortex_monitor.ejections import Record
from cortex_monitor.externals import Externals, Target, serving
from cortex_monitor.settings import EjectionSettings, LivenessSettings, ProbeSettings
from cortex_monitor.state import FleetState
from cortex_monitor.symptoms import WELL, Symptom
from cortex_shared.contracts.external import EndpointObserved, ExternalObserved
from cortex_shared.contracts.observed import Reason
from cortex_shared.contracts.routes import ExternalEndpoint, Route, RouteWanted

from tests.unit.monitor.fleet import WALL, evidence, manifest, wanted

REFUSED = Symptom("failed", Reason(code="external.refused", message="nothing listens"))
KEY_REFUSED = Symptom("failed", Reason(code="external.key_refused", message="it refuses"), certain=True)
LOADING = Symptom("loading", Reason(code="external.loading", message="it loads"), certain=True)
UNLISTED = Symptom("running", Reason(code="external.model_not_listed", message="not listed"))


def endpoint(name: str, **fields: object) -> ExternalEndpoint:
    return ExternalEndpoint.model_validate({"id": name, "url": f"http://{name}", **fields})


def wish(*endpoints: ExternalEndpoint) -> RouteWanted:
    return wanted().model_copy(update={"external": list(endpoints)})


class Fleet:
    """One model on servers `a` and `b`, with a clock."""

    def __init__(self, names: Sequence[str] = ("a", "b")) -> None:
        self.now = 1000.0
        self.state = FleetState(LivenessSettings(), EjectionSettings(), ProbeSettings())
        self.want(*map(endpoint, names))
        self.state.fold_manifest(manifest(1))

    def want(self, *endpoints: ExternalEndpoint) -> bool:
        self.state.fold_wanted(wish(*endpoints))
        return self.state.follow_externals(WALL)

    def target(self, name: str) -> Target:
        return next(w.target for w in self.state.externals.all() if w.target.endpoint.id == name)

    def probe(self, name: str, symptom: Symptom, times: int = 2) -> None:
        for _ in range(times):
            target = self.target(name)
            self.state.externals.fold(target, symptom, wall=WALL, latency_seconds=0.1)
            if symptom.state == "running":
                self.state.ejections.ready(name, "", self.now)

    def gateways_see(self, name: str, *, successes: int = 0, connect_failures: int = 0) -> None:
        told = evidence(name, successes=successes, connect_failures=connect_failures)
        self.state.fold_evidence(told, self.now)

    @property
    def route(self) -> Route:
        (route,) = self.state.routes(self.now)
        return route

    @property
    def served(self) -> list[str]:
        return [e.instance for e in self.route.endpoints]

    def told(self) -> dict[str, tuple[str, str | None]]:
        (observed,) = self.state.external_observed(self.now, WALL)
        return {e.id: (e.state, None if e.reason is None else e.reason.code) for e in observed.endpoints}


def test_before_the_first_look_all_are_routed() -> None:
    fleet = Fleet()
    assert (fleet.route.state, fleet.served) == ("starting", ["a", "b"])
    assert fleet.told() == {"a": ("starting", None), "b": ("starting", None)}


def test_a_server_that_fails_leaves_the_others_the_work() -> None:
    fleet = Fleet()
    fleet.probe("a", WELL)
    fleet.probe("b", REFUSED)
    assert (fleet.route.state, fleet.served) == ("degraded", ["a"])
    assert fleet.told()["b"] == ("failed", "external.refused")
    fleet.probe("b", WELL, times=1)
    assert (fleet.route.state, fleet.served) == ("running", ["a", "b"])


def test_one_failure_of_a_server_that_ran_may_be_chance() -> None:
    fleet = Fleet()
    fleet.probe("a", WELL)
    fleet.probe("b", WELL)
    fleet.probe("b", REFUSED, times=1)
    assert fleet.served == ["a", "b"]
    fleet.probe("b", REFUSED, times=1)
    assert fleet.served == ["a"]
    fleet.probe("a", KEY_REFUSED, times=1)  # unless it is no question of chance
    assert fleet.told()["a"] == ("failed", "external.key_refused")


def test_what_gateways_get_answers_from_stays() -> None:
    fleet = Fleet()
    fleet.probe("a", WELL)
    fleet.gateways_see("b", successes=1)
    fleet.probe("b", REFUSED)
    assert fleet.served == ["a", "b"]
    assert fleet.told()["b"] == ("running", "external.only_gateways")
    fleet.now += 11
    assert fleet.served == ["a"]


def test_without_traffic_the_last_ones_stay() -> None:
    fleet = Fleet()
    fleet.probe("a", REFUSED)
    fleet.probe("b", REFUSED)
    assert (fleet.route.state, fleet.served) == ("failed", ["a", "b"])


def test_the_last_one_goes_when_both_sides_say_so_and_is_tried_again() -> None:
    fleet = Fleet(["a"])
    fleet.probe("a", REFUSED)
    fleet.gateways_see("a", connect_failures=1)
    assert (fleet.route.state, fleet.served) == ("failed", [])
    fleet.now += EjectionSettings().first_seconds + 0.1
    assert fleet.served == ["a"]
    fleet.gateways_see("a", connect_failures=1)
    assert fleet.served == []
    fleet.probe("a", WELL, times=1)
    assert (fleet.route.state, fleet.served) == ("failed", ["a"])  # gateways failed after a first return
    fleet.gateways_see("a", successes=1)
    assert fleet.route.state == "running"


def test_what_gateways_cannot_reach_leaves_though_the_monitor_reaches_it() -> None:
    fleet = Fleet()
    fleet.probe("a", WELL)
    fleet.probe("b", WELL)
    fleet.gateways_see("b", connect_failures=1)
    assert fleet.served == ["a"]
    assert fleet.told()["b"] == ("failed", "external.only_monitor")
    fleet.probe("b", WELL, times=1)  # answers after the failure: tried again at once, the first time
    assert fleet.served == ["a", "b"]


def test_one_that_says_itself_that_it_loads_is_believed() -> None:
    fleet = Fleet(["a"])
    fleet.probe("a", LOADING, times=1)
    assert (fleet.route.state, fleet.served) == ("loading", [])
    fleet.probe("a", WELL, times=1)
    assert (fleet.route.state, fleet.served) == ("running", ["a"])


def test_a_warning_takes_nothing_out() -> None:
    fleet = Fleet(["a"])
    fleet.probe("a", UNLISTED, times=1)
    assert (fleet.route.state, fleet.served) == ("running", ["a"])
    assert fleet.told()["a"] == ("running", "external.model_not_listed")


def test_a_new_key_is_looked_at_at_once_and_old_answers_are_dropped() -> None:
    fleet = Fleet(["a"])
    fleet.probe("a", KEY_REFUSED, times=1)
    (watched,) = fleet.state.externals.all()
    watched.next_at = fleet.now + 5
    before = fleet.target("a")
    assert not fleet.want(endpoint("a", weight=3))
    assert fleet.want(endpoint("a", sealed_key="v1.new"))
    assert watched.next_at < fleet.now
    assert not fleet.state.externals.fold(before, WELL, wall=WALL, latency_seconds=0.1)
    assert fleet.route.state == "failed"
    fleet.probe("a", WELL, times=1)
    assert fleet.route.state == "running"


def test_what_is_not_wanted_is_not_watched() -> None:
    fleet = Fleet()
    fleet.want(endpoint("b"))
    assert set(fleet.state.externals.ids()) == {"b"}
    fleet.state.fold_manifest(manifest(epoch=2))
    fleet.state.follow_externals(WALL)
    assert not fleet.state.externals.ids()
    assert list(fleet.state.external_observed(fleet.now, WALL)) == []


@pytest.mark.parametrize("newer", [True, False])
def test_the_next_monitor_goes_on_from_what_was_told(newer: bool) -> None:
    fleet = Fleet(["a"])
    fleet.probe("a", WELL)
    seen = WALL + timedelta(seconds=5 if newer else -5)
    told = EndpointObserved(
        id="a", url="http://a", state="failed", since=WALL, reason=REFUSED.reason, checked_at=seen
    )
    fleet.state.externals.seed([ExternalObserved(model_id=1, endpoints=[told])])
    assert fleet.route.state == ("failed" if newer else "running")


def test_a_state_of_a_later_version_is_passed_over() -> None:
    fleet = Fleet(["a"])
    told = EndpointObserved(id="a", url="http://a", state="asleep", since=WALL, checked_at=WALL)
    fleet.state.externals.seed([ExternalObserved(model_id=1, endpoints=[told])])
    assert fleet.route.state == "starting"


def test_since_is_when_the_state_changed() -> None:
    externals = Externals(ProbeSettings())
    externals.follow([wish(endpoint("a"))], WALL)
    (watched,) = externals.all()
    externals.fold(watched.target, WELL, wall=WALL, latency_seconds=0.1)
    for later, since in ((1, 1), (9, 1)):
        (told,) = externals.observed({}, 0, WALL + timedelta(seconds=later))
        assert told.endpoints[0].since == WALL + timedelta(seconds=since)


def test_endpoints_of_which_nothing_is_known_are_served() -> None:
    assert serving([endpoint("a")], {}) == [endpoint("a")]
    assert Externals(ProbeSettings()).standings({"a": Record()}, 0) == {}
