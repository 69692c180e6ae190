"""Which endpoint gets the next request."""

import random
from collections import Counter
from collections.abc import Sequence

from cortex_gateway.balance import Chooser, Health, RetryBudget, RoundRobin
from cortex_gateway.choosing import Choosers
from cortex_gateway.prefix import PrefixChooser
from cortex_gateway.sticky import StickyChooser
from hypothesis import given
from hypothesis import strategies as st


def chooser(count: int, *, concurrency: int = 0, weights: Sequence[float] = ()) -> Chooser[Health]:
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


def in_turn(weights: Sequence[float], concurrency: int = 0) -> RoundRobin[Health]:
    return RoundRobin([Health(weight) for weight in weights], concurrency, random.Random(1))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 40))
def test_round_robin_is_even_by_weight_at_every_moment(weights: list[int], picks: int) -> None:
    choose = in_turn(weights)
    counts = Counter(picked(choose) for _ in range(picks))
    for endpoint in choose.endpoints:
        assert abs(counts[endpoint] - picks * endpoint.weight / sum(weights)) <= len(weights)
    whole = Counter(picked(in_turn_at) for in_turn_at in [in_turn(weights)] for _ in range(sum(weights)))
    assert [whole[e] for e in sorted(whole, key=lambda e: e.weight)] == sorted(weights)


def test_round_robin_spreads_the_turns_of_a_weight() -> None:
    choose = in_turn([2, 1, 1])
    heavy = choose.endpoints[0]
    order = [picked(choose) is heavy for _ in range(8)]
    assert order.count(True) == 4
    assert [True, True, True] not in [order[n : n + 3] for n in range(6)]


def test_round_robin_passes_over_who_cannot() -> None:
    choose = in_turn([1, 1, 1, 1], concurrency=2)
    dead, busy, full, well = choose.endpoints
    dead.failed(0)
    busy.overloaded(0)
    full.outstanding = 2
    assert {picked(choose, 0.1) for _ in range(8)} == {well}
    well.outstanding = 2
    assert picked(choose, 0.1) is busy
    busy.outstanding = 2
    assert choose.pick(0.1) is None


def test_a_policy_names_its_chooser_and_an_unknown_name_is_least() -> None:
    choosers = Choosers(random.Random(1), 1024)
    before: Chooser[Health] = chooser(1)
    kinds = {
        name: type(choosers.make(name, [Health(1)], 0, before))
        for name in ("least", "prefix", "session", "round_robin", "of a later version")
    }
    assert list(kinds.values()) == [Chooser, PrefixChooser, StickyChooser, RoundRobin, Chooser]
