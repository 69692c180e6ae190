"""A model's state as a function of its instances."""

from datetime import UTC, datetime
from itertools import product
from typing import cast

import pytest
from cortex_api.models.state import Replica, state_of
from cortex_shared.contracts.external import EndpointObserved
from cortex_shared.contracts.observed import Phase, Reason

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROBLEM = Reason(code="no_node", message="no node can run it", remedy="add one")
CAUSE = Reason(code="exited", message="it ended", remedy="read the log")


def replicas(*phases: str) -> list[Replica]:
    return [Replica(cast("Phase", phase)) for phase in phases]


@pytest.mark.parametrize(
    ("desired", "wanted", "phases", "state"),
    [
        ("stopped", 1, (), "stopped"),
        ("stopped", 1, ("stopped",), "stopped"),
        ("stopped", 1, ("failed",), "stopped"),
        ("stopped", 1, ("stopping",), "stopping"),
        ("stopped", 2, ("stopped", "ready"), "stopping"),
        ("running", 1, (), "starting"),
        ("running", 1, ("placed",), "starting"),
        ("running", 1, ("fetching",), "starting"),
        ("running", 1, ("starting",), "starting"),
        ("running", 1, ("loading",), "loading"),
        ("running", 2, ("loading", "placed"), "loading"),
        ("running", 1, ("ready",), "running"),
        ("running", 2, ("ready", "ready"), "running"),
        ("running", 1, ("ready", "stopping"), "running"),
        ("running", 2, ("ready", "loading"), "degraded"),
        ("running", 2, ("ready", "failed"), "degraded"),
        ("running", 1, ("stuck",), "degraded"),
        ("running", 1, ("unready",), "degraded"),
        ("running", 1, ("failed",), "failed"),
        ("running", 2, ("failed", "loading"), "loading"),
        ("running", 0, (), "stopped"),
    ],
)
def test_states(desired: str, wanted: int, phases: tuple[str, ...], state: str) -> None:
    assert state_of(desired, wanted, replicas(*phases), None)[0] == state


def test_what_could_not_be_placed_has_failed_and_says_why() -> None:
    assert state_of("running", 1, [], PROBLEM) == ("failed", PROBLEM)
    assert state_of("running", 2, replicas("loading"), PROBLEM)[0] == "loading"
    assert state_of("running", 2, replicas("placed"), PROBLEM) == ("starting", PROBLEM)
    assert state_of("running", 2, replicas("ready"), PROBLEM) == ("degraded", PROBLEM)
    assert state_of("running", 1, replicas("ready"), PROBLEM) == ("running", None)


def test_a_failed_instance_gives_its_reason() -> None:
    assert state_of("running", 1, [Replica("failed", reason=CAUSE)], PROBLEM) == ("failed", CAUSE)
    found = state_of("running", 2, [Replica("ready"), Replica("failed", reason=CAUSE)], None)
    assert found == ("degraded", CAUSE)


def test_what_runs_an_older_generation_serves_but_is_not_what_is_wanted() -> None:
    state, reason = state_of("running", 1, [Replica("ready", current=False)], None)
    assert state == "degraded"
    assert reason is not None
    assert "before" in reason.message


def test_an_external_model_is_as_its_endpoints_are() -> None:
    def state(*states: str, desired: str = "running") -> tuple[str, str | None]:
        found = [
            EndpointObserved(
                id=f"e{number}",
                url="http://e",
                state=state.removesuffix("!"),
                since=NOW,
                reason=Reason(code=state, message="") if state.endswith("!") else None,
            )
            for number, state in enumerate(states)
        ]
        shown, reason = state_of(desired, 1, [], None, external=found)
        return shown, None if reason is None else reason.code

    assert state("running") == ("running", None)
    assert state("running", "running!") == ("running", "running!")
    assert state("running!", "failed!") == ("degraded", "failed!")
    assert state("running", "starting") == ("degraded", None)
    assert state("starting", "failed!") == ("starting", "failed!")
    assert state("loading", "failed!") == ("loading", "failed!")
    assert state("failed!", "failed!") == ("failed", "failed!")
    assert state("failed!", desired="stopped") == ("stopped", None)


def test_running_needs_enough_ready_ones_whatever_else_there_is() -> None:
    phases = ("placed", "loading", "ready", "stuck", "stopping", "stopped", "failed")
    for chosen in product(phases, repeat=3):
        for wanted in (1, 2, 3):
            state, _ = state_of("running", wanted, replicas(*chosen), None)
            assert (state == "running") == (chosen.count("ready") >= wanted)
