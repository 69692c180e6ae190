"""A histogram counts into the right bucket, whatever came before."""

from bisect import bisect_left

from cortex_gateway.stats import Histogram
from hypothesis import given
from hypothesis import strategies as st

_BOUNDS = (0.5, 1.0, 4.0)


@given(st.lists(st.floats(-1, 6) | st.sampled_from([*_BOUNDS, 0.0, float("inf")]), max_size=40))
def test_values_fall_into_their_buckets(values: list[float]) -> None:
    histogram = Histogram(_BOUNDS)
    counts = [0] * (len(_BOUNDS) + 1)
    for value in values:
        histogram.observe(value)
        counts[bisect_left(_BOUNDS, value)] += 1
    assert histogram.values()[:-1] == counts
