"""Texts of which a gist leaves something out, or must not."""

from hypothesis import strategies as st

LONG = st.integers(3_000, 20_000)
TEXTS = st.one_of(
    LONG.map(lambda n: "A9+/" * (n // 4)),
    LONG.map(lambda n: "\n" * (n // 2)),
    LONG.map(lambda n: "\\" * (n // 2)),
    LONG.map(lambda n: '"' * (n // 2)),
    LONG.map(lambda n: "\u00e9" * (n // 2)),
    LONG.map(lambda n: "x{" * (n // 2)),
    st.tuples(LONG, st.integers(1, 5), LONG).map(lambda t: "a" * t[0] + "\\" * t[1] + '"' + "b" * t[2]),
    st.sampled_from(["", "model", 'a "quote"', "}", "]", ","]),
)
