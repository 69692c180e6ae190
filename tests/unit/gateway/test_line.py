"""The line of a route: classes, turns between keys, nobody starves, and what is kept free."""

from cortex_gateway.line import HIGH, LOW, NORMAL, Line, Reserve, rank_of
from hypothesis import given
from hypothesis import strategies as st


def served(line: Line[str], count: int, lowest: int = LOW) -> list[str]:
    found: list[str] = []
    for _ in range(count):
        first = line.first(lowest)
        if first is None:
            break
        line.take(first[0])
        found.append(first[0])
    return found


def test_keys_take_turns() -> None:
    line: Line[str] = Line()
    for number in range(5):
        line.add(f"a{number}", 1, NORMAL)
    line.add("b0", 2, NORMAL)
    line.add("c0", 3, NORMAL)
    line.add("b1", 2, NORMAL)
    assert served(line, 8) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4"]
    assert line.first() is None
    assert len(line) == 0


def test_higher_classes_go_first_and_lower_ones_do_not_starve() -> None:
    line: Line[str] = Line()
    for number in range(40):
        line.add(f"high{number}", 1, HIGH)
    line.add("low0", 2, LOW)
    line.add("normal0", 3, NORMAL)
    order = served(line, 42)
    assert order[0] == "high0"
    assert order.index("normal0") <= 10
    assert order.index("low0") <= 20
    assert [each for each in order if each.startswith("high")] == [f"high{number}" for number in range(40)]


def test_only_classes_that_may_are_served() -> None:
    line: Line[str] = Line()
    line.add("low", 1, LOW)
    line.add("normal", 1, NORMAL)
    assert line.first(HIGH) is None
    assert served(line, 5, NORMAL) == ["normal"]
    assert served(line, 5) == ["low"]


def test_who_leaves_is_not_served() -> None:
    line: Line[str] = Line()
    line.add("a", 1, NORMAL)
    line.add("b", 1, NORMAL)
    assert line.remove("a")
    assert not line.remove("a")
    assert list(line) == ["b"]
    assert served(line, 5) == ["b"]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.booleans()), max_size=60))
def test_everyone_is_served_once_or_left(steps: list[tuple[int, int, bool]]) -> None:
    line: Line[int] = Line()
    left: set[int] = set()
    for number, (key, rank, leaves) in enumerate(steps):
        line.add(number, key, rank)
        if leaves and number % 2:
            assert line.remove(number - 1) is (number - 1 not in left)
            left.add(number - 1)
    order: list[int] = []
    while (first := line.first()) is not None:
        assert first[1] == steps[first[0]][1]
        line.take(first[0])
        order.append(first[0])
    assert sorted(order) == [number for number in range(len(steps)) if number not in left]
    for key in range(5):
        for rank in range(3):
            same = [number for number in order if steps[number][:2] == (key, rank)]
            assert same == sorted(same)


def test_slots_are_kept_for_classes_that_asked_lately() -> None:
    reserve = Reserve(0.1)
    assert [reserve.lowest(free, 20, 0) for free in (0, 1, 2, 3)] == [-1, LOW, LOW, LOW]
    reserve.asks(HIGH, 0)
    assert [reserve.lowest(free, 20, 1) for free in (0, 1, 2, 3)] == [-1, HIGH, HIGH, LOW]
    reserve.asks(NORMAL, 0)
    assert [reserve.lowest(free, 20, 1) for free in (1, 2, 3, 4, 5)] == [HIGH, HIGH, NORMAL, NORMAL, LOW]
    assert reserve.lowest(1, 4, 1) == LOW  # of so few none is kept
    assert reserve.lowest(1, 20, 1000) == LOW


def test_classes() -> None:
    assert [rank_of(priority) for priority in (-100, -1, 0, 1, 100)] == [LOW, LOW, NORMAL, HIGH, HIGH]
