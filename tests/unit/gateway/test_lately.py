"""Batches that the bus has taken a moment ago."""

from cortex_gateway.lately import Lately


def test_batches_are_kept_for_a_while() -> None:
    lately = Lately(10, 100)
    lately.keep(0, "a", b"1")
    lately.keep(6, "b", b"2")
    assert lately.batches(10) == [("a", b"1"), ("b", b"2")]
    assert lately.batches(11) == [("b", b"2")]
    assert lately.batches(17) == []


def test_the_oldest_go_when_there_are_too_many_bytes() -> None:
    lately = Lately(10, 100)
    for number in range(5):
        lately.keep(0, str(number), bytes(40))
    assert [name for name, _ in lately.batches(1)] == ["3", "4"]
    lately.keep(1, "large", bytes(101))
    assert lately.batches(1) == []
