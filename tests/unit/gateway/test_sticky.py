"""Session balance: who names a session stays where it is, and moves only when it must."""

import random
from collections import Counter

from cortex_gateway.affinity import Memory
from cortex_gateway.balance import Affinity, Health
from cortex_gateway.sessions import session
from cortex_gateway.sticky import StickyChooser
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("a", "b", "c", "d")


def fleet(*weights: float, names: tuple[str, ...] = NAMES) -> StickyChooser[Health]:
    endpoints = [Health(weight, name) for weight, name in zip(weights, names, strict=False)]
    return StickyChooser(endpoints, 0, random.Random(1), Memory.of(64 * 1024))


def of(name: str) -> Affinity:
    return Affinity(session([], None, name), (), 0)


def home(choose: StickyChooser[Health], name: str, now: float = 0) -> Health:
    found = choose.pick(now, (), of(name))
    assert found is not None
    return found


def test_sessions_stay_and_spread_by_weight() -> None:
    choose = fleet(3, 1)
    homes = {f"s{n}": home(choose, f"s{n}") for n in range(2000)}
    assert all(home(choose, name) is where for name, where in homes.items())
    counts = Counter(homes.values())
    assert 2.5 < counts[choose.endpoints[0]] / counts[choose.endpoints[1]] < 3.6


def test_a_session_begins_at_the_same_endpoint_in_every_process() -> None:
    one, two = fleet(1, 1, 1), fleet(1, 1, 1)
    for n in range(50):
        a, b = home(one, f"s{n}"), home(two, f"s{n}")
        assert one.endpoints.index(a) == two.endpoints.index(b)


def test_an_endpoint_that_joins_takes_no_session_away_and_one_that_leaves_only_its_own() -> None:
    memory = Memory.of(64 * 1024)
    endpoints = [Health(1, name) for name in NAMES]
    three = StickyChooser(endpoints[:3], 0, random.Random(1), memory)
    homes = {f"s{n}": home(three, f"s{n}") for n in range(200)}
    four = StickyChooser(endpoints, 0, random.Random(1), memory)
    assert all(home(four, name) is where for name, where in homes.items())
    assert any(home(four, f"new{n}") is endpoints[3] for n in range(40))
    without = StickyChooser(endpoints[1:], 0, random.Random(1), memory)
    for name, where in homes.items():
        assert (home(without, name) is where) == (where is not endpoints[0])


def test_a_session_moves_from_a_broken_endpoint_and_then_stays_where_it_went() -> None:
    choose = fleet(1, 1, 1)
    first = home(choose, "s")
    first.failed(0)
    second = home(choose, "s", 0.1)
    assert second is not first
    first.answered()
    assert home(choose, "s", 20) is second


def test_a_session_moves_from_an_overloaded_endpoint() -> None:
    choose = fleet(1, 1, 1)
    first = home(choose, "s")
    first.outstanding = 4
    assert home(choose, "s") is first  # a handful is no overload
    first.outstanding = 12
    second = home(choose, "s")
    assert second is not first
    first.outstanding = 0
    assert home(choose, "s") is second
    second.overloaded(1)
    assert home(choose, "s", 1.5) is not second


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=150))
def test_the_bound_holds_however_few_sessions_there_are(requests: list[tuple[int, bool]]) -> None:
    choose = fleet(1, 1, 2)
    held: list[Health] = []
    for name, ends_one in requests:
        if ends_one and held:
            held.pop(0).outstanding -= 1
        found = home(choose, f"s{name}")
        found.outstanding += 1
        held.append(found)
        total = sum(e.outstanding for e in choose.endpoints)
        assert found.outstanding <= 1.25 * total * found.weight / 4 + 5


def test_an_attempt_after_a_failure_goes_elsewhere_and_the_session_with_it() -> None:
    choose = fleet(1, 1)
    first = home(choose, "s")
    second = choose.pick(0, [first], of("s"))
    assert second is not None
    assert second is not first
    assert home(choose, "s") is second
    assert choose.pick(0, choose.endpoints, of("s")) is None


def test_without_a_session_it_is_the_least_outstanding() -> None:
    choose = fleet(1, 1)
    choose.endpoints[0].outstanding = 1
    assert choose.pick(0, (), Affinity(0, (), 0)) is choose.endpoints[1]
    assert choose.pick(0) is choose.endpoints[1]


def test_sessions_beyond_what_is_remembered_are_where_their_hash_says() -> None:
    endpoints = [Health(1, name) for name in NAMES]
    choose = StickyChooser(endpoints, 0, random.Random(1), Memory.of(64))
    homes = {f"s{n}": home(choose, f"s{n}") for n in range(500)}
    assert all(home(choose, name) is where for name, where in homes.items())
