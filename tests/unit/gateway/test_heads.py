"""Known heads: found by their bytes, never by less."""

from cortex_gateway.heads import KnownHeads
from hypothesis import given
from hypothesis import strategies as st

_HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nAccept: */*\r\n\r\n"


def known(head: bytes, *, with_length: bool = True) -> KnownHeads[str]:
    heads: KnownHeads[str] = KnownHeads(4)
    heads.keep(head, "read", with_length=with_length)
    return heads


def found[T](heads: KnownHeads[T], data: bytes) -> tuple[T, int, int] | None:
    """What is found, by whom the peer's last head is known and by whom it is not."""
    by_map = heads.find(data)
    kept = list(heads._known.values())  # pyright: ignore[reportPrivateUsage] # each may have been the last
    for last in kept:
        assert heads.find(data, last) == by_map
        alone = KnownHeads[T](1).find(data, last)
        assert alone is None or alone == by_map
    if by_map is not None:
        assert KnownHeads[T](1).find(data, by_map[0]) == by_map
    return None if by_map is None else (by_map[0].value, *by_map[1:])


def test_a_head_is_found_with_another_length() -> None:
    heads = known(_HEAD % 7)
    data = _HEAD % 12345
    assert found(heads, data + b"body") == ("read", len(data), 12345)
    assert found(known(_HEAD.replace(b"Content-L", b"content-l") % 7), data) is None


def test_a_head_without_length() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert found(known(head, with_length=False), head + b"0\r\n\r\n") == ("read", len(head), -1)
    assert found(known(head), head) is None


def test_what_is_not_whole_is_not_found() -> None:
    heads, data = known(_HEAD % 7), _HEAD % 7
    for end in range(len(data)):
        assert found(heads, data[:end]) is None


def test_lengths_that_are_none() -> None:
    heads = known(_HEAD % 7)
    for length in (b"", b"-1", b"+1", b"1 ", b" 1", b"1_0", b"0x1", b"1\r\n", b"\xb2", b"9" * 11, b"1,1"):
        assert found(heads, _HEAD.replace(b"%d", length)) is None, length


def test_heads_in_which_the_length_could_be_mistaken_are_not_kept() -> None:
    for head in (
        b"POST / HTTP/1.1\r\nx-strength: 9\r\ncontent-length: 7\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 7\r\nContent-Length: 7\r\n\r\n",
        b"POST / HTTP/1.1\r\nx-content-length: 7\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length:7\r\n\r\n",
        b"POST /ength: HTTP/1.1\r\ncontent-length: 7\r\n\r\n",
    ):
        assert len(known(head)) == 0, head


def test_the_two_sides_of_the_length_are_told_apart() -> None:
    # Joined, they would read the same.
    heads = known(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\nx: y\r\n\r\n")
    assert found(heads, b"POST / HTTP/1.1\r\nhost: aength: 7\r\ncontent-l\r\nx: y\r\n\r\n") is None


def test_there_is_a_bound() -> None:
    heads: KnownHeads[int] = KnownHeads(4)
    for number in range(10):
        heads.keep(b"POST /%d HTTP/1.1\r\ncontent-length: 1\r\n\r\n" % number, number, with_length=True)
    assert len(heads) == 4
    assert found(heads, b"POST /5 HTTP/1.1\r\ncontent-length: 1\r\n\r\n") is None
    assert found(heads, b"POST /9 HTTP/1.1\r\ncontent-length: 1\r\n\r\n") is not None
    heads.keep(b"POST / HTTP/1.1\r\nx: %b\r\ncontent-length: 1\r\n\r\n" % (b"y" * 5000), 0, with_length=True)
    assert len(heads) == 4


@given(st.binary(max_size=80), st.integers(0, 60), st.integers(0, 60))
def test_one_other_byte_is_another_head(noise: bytes, start: int, end: int) -> None:
    data = _HEAD % 7
    other = data[:start] + noise + data[end:]
    what = found(known(data), other)
    if what is not None:
        assert other[: what[1]] == _HEAD % what[2]
