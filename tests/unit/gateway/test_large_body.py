"""LargeBody: however a body was cut, it is read and sent as it is."""

import itertools
import json
from typing import Any

import msgspec
from cortex_gateway import body
from cortex_gateway.body import USAGE_FIELD
from cortex_gateway.errors import ApiError
from cortex_gateway.incoming import Incoming
from cortex_gateway.large_body import LargeBody, is_large
from cortex_gateway.wanted import Wanted
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.gateway.long_texts import TEXTS


@st.composite
def _bodies(draw: st.DrawFn) -> tuple[bytes, LargeBody]:
    names = st.sampled_from(["user", "messages", "a", "b"])
    fields: dict[str, Any] = draw(st.dictionaries(names, st.lists(TEXTS, max_size=3) | TEXTS, max_size=3))
    if draw(st.booleans()):
        fields["model"] = draw(st.sampled_from(["m", ""]))
    fields["max_tokens"] = draw(st.integers(0, 9))
    data = json.dumps(fields, ensure_ascii=draw(st.booleans())).encode()
    if draw(st.booleans()):
        data = data[: draw(st.integers(1, len(data)))]
    data += draw(st.sampled_from([b"", b" ", b"\n" * 5000]))
    places = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=4))})
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]
    head = draw(st.sampled_from([b"", b"POST / HTTP/1.1\r\nx: {}\r\n\r\n", b'"}' * 3000]))
    pieces[0] = head + pieces[0]
    stop = 0
    if draw(st.booleans()):  # as LargeReads has them: the last has room for more, in which anything may be
        stop = len(pieces[-1])
        pieces = [
            *map(bytearray, pieces[:-1]),
            bytearray(pieces[-1] + draw(st.sampled_from([b'"}', b'"' * 9000]))),
        ]
    return data, LargeBody(list(pieces), len(head), stop, len(data))


def _fields(said: Wanted) -> dict[str, Any]:
    return {name: getattr(said, name) for name in Wanted.__struct_fields__}


def test_memory_that_was_read_to_does_not_grow() -> None:
    incoming, piece = Incoming(), bytearray(b"r" * 100)
    for _ in range(2000):
        incoming.add(b"a")
    incoming.parts.append(piece)  # as LargeReads does it
    incoming.stop = len(piece)
    for _ in range(2000):
        incoming.add(b"b")
    assert len(piece) == 100
    assert len(incoming.parts) < 1100
    assert b"".join(incoming.parts) == b"a" * 2000 + piece + b"b" * 2000


@settings(max_examples=200)
@given(_bodies())
def test_what_is_read_and_sent_is_the_body(both: tuple[bytes, LargeBody]) -> None:
    data, large = both
    assert large.joined() == data
    assert b"".join(large.buffers()) == data
    told, whole = body.read_gist(large.gist()), body.read(data)
    if isinstance(told, ApiError):
        assert isinstance(whole, ApiError)
        assert told.message == whole.message
    elif told is not None:
        assert not isinstance(whole, ApiError)
        assert _fields(told) == _fields(whole)
        assert body.gist_doubles_model(large.gist()) in (None, body.doubles_model(data))
        if large.add_field(USAGE_FIELD):
            edited = body.with_usage(data, msgspec.UNSET)
            assert (large.joined(), large.size) == (edited, len(edited))
            assert b"".join(large.buffers()) == edited
            assert not large.add_field(USAGE_FIELD)


def test_texts_are_passed_over_in_every_piece() -> None:
    text = b"x" * 100_000
    large = LargeBody([b'head{"messages":"' + text, text, text + b'","model":"m"}'], 4, 0, 300_030)
    assert len(large.gist()) < 30_000
    said = body.read_gist(large.gist())
    assert isinstance(said, Wanted)
    assert said.model == "m"


def test_what_is_left_in_pieces() -> None:
    assert is_large(1, 16 * 1024)
    assert not is_large(1, 16 * 1024 - 1)
    assert is_large(64, 1_000_000)
    assert not is_large(65, 1_000_000)
    assert not is_large(20, 64 * 1024)

    def take(size: int, *parts: bytes | bytearray, start: int = 0, stop: int = 0) -> tuple[bool, bytes]:
        incoming = Incoming()
        incoming.parts += parts
        incoming.start, incoming.stop, incoming.size = start, stop, size
        large = incoming.take_large_body()
        taken = incoming.take_body() if large is None else large.joined()
        assert incoming.parts == []
        return large is not None, taken

    a, b = b"a" * 20_000, b"b" * 9_000
    assert take(29_000, a, b) == (True, a + b)
    assert take(29_000, b"head" + a, b, start=4) == (True, a + b)
    assert take(9_000, b"head" + b, start=4) == (False, b)
    assert take(20_000, *(a[at : at + 100] for at in range(0, 20_000, 100))) == (False, a)
    assert take(0) == (False, b"")
    roomy = bytearray(b"head" + b + a)
    assert take(20_000, bytearray(b"head" + a), start=4) == (True, a)
    assert take(9_000, roomy, start=4, stop=9_004) == (False, b)
    assert take(29_000, a, roomy, stop=9_004) == (True, a + b"head" + b)
