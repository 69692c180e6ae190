"""Verdicts: who is live, silent, lost or frozen."""

from collections.abc import Callable

import pytest
from cortex_monitor.liveness import (
    ACCEPTS,
    ANSWERS,
    NEVER,
    NO_HEARTBEAT,
    REFUSES,
    TOGETHER,
    Judgement,
    NodeFacts,
    judge,
)
from cortex_monitor.settings import LivenessSettings
from cortex_shared.contracts.verdicts import Verdict

RULES = LivenessSettings()


def facts(
    name: str = "n",
    *,
    heard_at: float = 0,
    heard: bool = True,
    verdict: Verdict = "live",
    patient_from: float = NEVER,
    answered_at: float = NEVER,
    refused_at: float = NEVER,
    reached_at: float = NEVER,
) -> NodeFacts:
    return NodeFacts(name, heard, heard_at, patient_from, 2.5, verdict, answered_at, refused_at, reached_at)


def verdict_of(node: NodeFacts, now: float) -> Verdict:
    return judge([node], RULES, now)[node.node].verdict


@pytest.mark.parametrize(
    ("age", "verdict"), [(0, "live"), (7.9, "live"), (8.1, "silent"), (30, "silent"), (30.1, "lost")]
)
def test_silence_grows_into_loss(age: float, verdict: Verdict) -> None:
    assert verdict_of(facts(), age) == verdict


def test_a_node_whose_engines_accept_connections_is_not_lost_though_nobody_asks_them() -> None:
    (judgement,) = judge([facts(reached_at=95)], RULES, 100).values()
    assert judgement == Judgement("silent", (NO_HEARTBEAT, ACCEPTS))
    assert verdict_of(facts(reached_at=85), 100) == "lost"


def test_a_node_whose_engines_answer_gateways_is_not_lost() -> None:
    judged = judge([facts(answered_at=95)], RULES, 100)["n"]
    assert judged.verdict == "silent"
    assert ANSWERS in judged.evidence
    assert verdict_of(facts(answered_at=85, verdict="silent"), 100) == "lost"


def test_refused_connections_are_told() -> None:
    assert REFUSES in judge([facts(refused_at=9)], RULES, 10)["n"].evidence


def test_a_lost_node_is_live_as_soon_as_it_is_heard_and_not_before() -> None:
    assert verdict_of(facts(verdict="lost", heard_at=0), 100) == "lost"
    assert verdict_of(facts(verdict="lost", heard_at=0, patient_from=99), 100) == "lost"
    assert verdict_of(facts(verdict="lost", heard_at=100), 100) == "live"


def test_the_monitors_own_deafness_is_not_the_nodes_silence() -> None:
    assert verdict_of(facts(patient_from=100), 105) == "live"
    assert verdict_of(facts(patient_from=100), 109) == "silent"
    assert verdict_of(facts(verdict="silent", patient_from=100), 105) == "silent"
    assert verdict_of(facts(verdict="silent", patient_from=100), 131) == "lost"


def test_nodes_not_heard_since_the_start_are_given_longer() -> None:
    assert verdict_of(facts(heard=False), 60) == "silent"
    assert verdict_of(facts(heard=False), 60.1) == "lost"
    assert verdict_of(facts(heard=False, answered_at=55), 60.1) == "silent"
    assert verdict_of(facts(heard=False, verdict="lost"), 1) == "lost"


def fleet_of(count: int, make: Callable[[int], NodeFacts]) -> list[NodeFacts]:
    return [make(number) for number in range(count)]


def test_most_nodes_silent_together_are_frozen_for_as_long_as_it_lasts() -> None:
    nodes = fleet_of(4, lambda n: facts(f"n{n}", heard_at=n if n < 3 else 1000))
    for now in (12, 100, 1000):
        judged = judge(nodes, RULES, now)
        assert [judged[f"n{n}"].verdict for n in range(3)] == ["frozen"] * 3
        assert TOGETHER in judged["n0"].evidence


def test_half_of_the_nodes_is_not_most() -> None:
    nodes = fleet_of(4, lambda n: facts(f"n{n}", heard_at=0 if n < 2 else 100))
    assert judge(nodes, RULES, 100)["n0"].verdict == "lost"


def test_one_silent_node_of_one_never_freezes() -> None:
    assert verdict_of(facts(), 100) == "lost"


def test_nodes_that_fell_silent_one_by_one_over_time_are_not_frozen() -> None:
    nodes = [facts("a", heard_at=0, verdict="silent"), facts("b", heard_at=25), facts("c", heard_at=60)]
    judged = judge(nodes, RULES, 60)
    assert [judged[n].verdict for n in "abc"] == ["lost", "lost", "live"]


def test_nodes_lost_long_ago_do_not_count_towards_most() -> None:
    lost = fleet_of(10, lambda n: facts(f"old{n}", heard_at=0, verdict="lost"))
    judged = judge([*lost, facts("a", heard_at=990), facts("b", heard_at=991)], RULES, 1000)
    assert judged["a"].verdict == "frozen"
    assert judged["old0"].verdict == "lost"


def test_after_a_freeze_those_still_silent_are_given_their_time_again() -> None:
    nodes = [
        facts("a", heard_at=0, verdict="frozen"),
        *(facts(n, heard_at=500, verdict="frozen") for n in "bc"),
    ]
    judged = judge(nodes, RULES, 500)
    assert [judged[n].verdict for n in "abc"] == ["silent", "live", "live"]
    still = facts("a", heard_at=0, verdict="silent", patient_from=500)
    assert verdict_of(still, 529) == "silent"
    assert verdict_of(still, 531) == "lost"


def test_nodes_never_heard_do_not_freeze_unless_an_earlier_monitor_said_so() -> None:
    assert judge(fleet_of(3, lambda n: facts(f"n{n}", heard=False)), RULES, 61)["n0"].verdict == "lost"
    frozen = fleet_of(3, lambda n: facts(f"n{n}", heard=False, verdict="frozen"))
    assert judge(frozen, RULES, 61)["n0"].verdict == "frozen"
