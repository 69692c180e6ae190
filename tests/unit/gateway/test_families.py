"""Metrics as data: merging is adding up, and what is rendered is what Prometheus' own parser reads."""

from collections import Counter

import pytest
from cortex_gateway import families
from cortex_gateway.families import Family, Snapshot, counter, gauge, histogram
from cortex_shared.errors import InvalidInput
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

_BOUNDS = (0.001, 0.5, 10.0)
_LABEL = st.text(max_size=6) | st.sampled_from(['a"b', "back\\slash", "new\nline", "é"])
_VALUE = st.integers(0, 2**40).map(float)


@st.composite
def _snapshots(draw: st.DrawFn) -> Snapshot:
    requests = counter("x_requests", 'Ends, "of" requests\\.\nSecond line.', "route", "status")
    depth = gauge("x_depth", "Now.", "route")
    lag = gauge("x_lag", "Worst.", over="max")
    began = gauge("x_began", "First.", over="min")
    seconds = histogram("x_seconds", "Time.", _BOUNDS, "route")
    for labels in draw(st.lists(st.tuples(_LABEL, _LABEL), max_size=4, unique=True)):
        requests.add(labels, draw(_VALUE))
    for label in draw(st.lists(_LABEL, max_size=4, unique=True)):
        depth.add((label,), draw(_VALUE))
        seconds.add((label,), *draw(st.lists(_VALUE, min_size=5, max_size=5)))
    lag.add((), draw(_VALUE))
    began.add((), draw(_VALUE))
    return [requests, depth, lag, began, seconds]


def _read(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


@settings(deadline=None)
@given(st.lists(_snapshots(), min_size=1, max_size=4))
def test_the_page_of_several_is_what_their_pages_add_up_to(snapshots: list[Snapshot]) -> None:
    before = [families.encode(snapshot) for snapshot in snapshots]
    together = _read(families.render(families.merge(snapshots)))
    pages = [_read(families.render(snapshot)) for snapshot in snapshots]
    expected: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
    for page in pages:
        expected.update(page)
    for name, choose in (("x_lag", max), ("x_began", min)):
        expected[name, ()] = choose(page[name, ()] for page in pages)  # type: ignore[assignment] # floats
    assert together == dict(expected)
    assert [families.encode(snapshot) for snapshot in snapshots] == before


@settings(deadline=None)
@given(_snapshots())
def test_a_snapshot_survives_the_way_to_another_process(snapshot: Snapshot) -> None:
    assert families.decode(families.encode(snapshot)) == snapshot


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_nonsense_is_refused(data: bytes) -> None:
    try:
        found = families.decode(data)
    except InvalidInput:
        return
    assert all(isinstance(family, Family) for family in found)


def test_nonsense_is_told() -> None:
    with pytest.raises(InvalidInput, match="not a snapshot"):
        families.decode(b"{}")


def test_families_that_do_not_fit_are_not_added() -> None:
    mine, other, short = (histogram("h", "", bounds) for bounds in (_BOUNDS, (1.0,), _BOUNDS))
    mine.add((), 1, 0, 0, 0, 0.0005)
    other.add((), 5, 5, 10)
    short.add((), 1, 2)
    short.add(("too many",), 1, 0, 0, 0, 0.5)
    assert families.merge([[mine], [other], [short]]) == [mine]


def test_what_lasts_of_an_ended_process_are_its_counts() -> None:
    ended = [counter("c", ""), gauge("g", ""), histogram("h", "", _BOUNDS)]
    assert [family.name for family in families.lasting(ended)] == ["c", "h"]


def test_the_format_to_the_letter() -> None:
    depth = gauge("depth", "Now.")
    depth.add((), 3)
    seconds = histogram("seconds", "Time.", (0.00005, 1.0), "route")
    seconds.add(("m",), 2, 1, 1, 7.5)
    assert families.render([depth, seconds]).decode() == (
        "# HELP depth Now.\n# TYPE depth gauge\ndepth 3.0\n"
        "# HELP seconds Time.\n# TYPE seconds histogram\n"
        'seconds_bucket{route="m",le="5e-05"} 2.0\n'
        'seconds_bucket{route="m",le="1.0"} 3.0\n'
        'seconds_bucket{route="m",le="+Inf"} 4.0\n'
        'seconds_count{route="m"} 4.0\n'
        'seconds_sum{route="m"} 7.5\n'
    )
