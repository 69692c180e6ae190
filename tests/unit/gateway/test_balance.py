"""Which endpoint gets the next request."""

import random
from collections import Counter

from cortex_gateway.balance import Chooser, Health, RetryBudget


def chooser(count: int, *, concurrency: int = 0, weights: tuple[float, ...] = ()) -> Chooser[Health]:
    endpoints = [Health(weights[n] if weights else 1) for n in range(count)]
    return Chooser(endpoints, concurrency, random.Random(1))


def picked(choose: Chooser[Health], now: float = 0) -> Health:
    found = choose.pick(now)
    assert found is not None
    return found


def test_ties_are_broken_at_random() -> None:
    choose = chooser(4)
    counts = Counter(picked(choose) for _ in range(4000))
    assert min(counts.values()) > 800


def test_the_least_busy_wins_and_weight_counts() -> None:
    choose = chooser(2, weights=(3, 1))
    for _ in range(40):
        picked(choose).outstanding += 1
    assert [e.outstanding for e in choose.endpoints] == [30, 10]


def test_the_cap_holds() -> None:
    choose = chooser(2, concurrency=2)
    for _ in range(4):
        picked(choose).outstanding += 1
    assert choose.pick(0) is None


def test_failures_eject_for_longer_and_longer_with_one_probe() -> None:
    choose = chooser(2)
    bad, good = choose.endpoints
    bad.failed(0)
    assert {picked(choose, 0.4) for _ in range(20)} == {good}
    assert bad in {picked(choose, 0.6) for _ in range(20)}
    bad.probing = True
    assert {picked(choose, 0.6) for _ in range(20)} == {good}
    bad.failed(0.6)
    assert {picked(choose, 1.4) for _ in range(20)} == {good}
    assert bad in {picked(choose, 1.7) for _ in range(20)}
    bad.answered()
    assert bad in {picked(choose, 1.7) for _ in range(20)}


def test_the_last_one_is_never_ejected() -> None:
    choose = chooser(2)
    choose.endpoints[0].failed(0)
    choose.endpoints[0].failed(0.6)
    choose.endpoints[1].failed(0.6)
    assert picked(choose, 0.7) is choose.endpoints[1]
    assert choose.pick(0.7, [choose.endpoints[1]]) is choose.endpoints[0]
    assert choose.pick(0.7, choose.endpoints) is None


def test_requests_that_break_together_are_one_failure() -> None:
    choose = chooser(2)
    bad, good = choose.endpoints
    for _ in range(100):
        bad.failed(0)
    assert {picked(choose, 0.4) for _ in range(20)} == {good}
    assert bad in {picked(choose, 0.6) for _ in range(20)}


def test_an_engine_that_answers_is_back_at_once() -> None:
    choose = chooser(2)
    back, good = choose.endpoints
    for now in (0, 1, 3):
        back.failed(now)
    assert {picked(choose, 3.1) for _ in range(20)} == {good}
    back.answered()
    assert back in {picked(choose, 3.1) for _ in range(20)}


def test_overload_weighs_down_for_a_moment() -> None:
    choose = chooser(2)
    busy, free = choose.endpoints
    busy.overloaded(0)
    free.outstanding = 5
    assert picked(choose, 0.5) is free
    assert picked(choose, 2) is busy


def test_the_budget_is_a_burst_and_then_a_share() -> None:
    budget = RetryBudget(0.2, 3)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    taken = 0
    for _ in range(100):
        budget.request()
        taken += budget.take()
    assert 18 <= taken <= 20
