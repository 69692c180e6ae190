"""gist: what is read from it is what the body itself says."""

import json
from typing import Any, cast

import msgspec
import pytest
from cortex_gateway import body
from cortex_gateway.errors import ApiError
from cortex_gateway.gist import gist
from cortex_gateway.wanted import Wanted
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.gateway.long_texts import LONG, TEXTS

_NUMBERS = st.one_of(
    LONG.map(lambda n: [7] * (n // 3)),
    LONG.map(lambda n: [[1, 2]] * (n // 8)),
    LONG.map(lambda n: [1, *[0] * n, 2]),
)
_NAMES = st.sampled_from(["model", "user", "stream", "a", "n"]) | TEXTS
_VALUES = st.recursive(
    TEXTS | _NUMBERS | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=6,
)


_SPACES = st.integers(0, 12_000).map(lambda n: b" " * n)


@st.composite
def _bodies(draw: st.DrawFn) -> bytes:
    # Most are JSON; of some only the first part is, or the brackets do not match.
    fields: dict[str, Any] = draw(st.dictionaries(_NAMES, _VALUES, max_size=4))
    fields[draw(st.sampled_from(["model", "model", "a"]))] = draw(st.sampled_from(["m", "x" * 900]) | TEXTS)
    fields[draw(st.sampled_from(["max_tokens", "n", "seed"]))] = draw(st.integers(0, 10**9))
    data = json.dumps(
        fields, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1]))
    ).encode()
    for _ in range(draw(st.integers(0, 3))):
        # Between any two tokens, or into one.
        places = [at for at, byte in enumerate(data) if byte in b",:{}[]"]
        at = draw(st.sampled_from(places)) + draw(st.integers(0, 2))
        odd = draw(st.sampled_from([b"", b"", b"", b"}", b"]", b",", b'"x":{', b'"model":"n",', b"000"]))
        data = data[:at] + draw(_SPACES) + odd + draw(_SPACES) + data[at:]
    return data


def _wanted(data: bytes) -> Wanted | None:
    try:
        return msgspec.json.decode(data, type=Wanted)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


@settings(max_examples=100)
@given(_bodies())
def test_all_that_is_wanted_is_read_as_from_the_body_itself(data: bytes) -> None:
    said, full = body.read(data), _wanted(data)
    if full is None or not full.model or len(full.model) > body.NAME_MAX:
        assert isinstance(said, ApiError)
        return
    assert not isinstance(said, ApiError), said
    names = Wanted.__struct_fields__
    assert [getattr(said, name) for name in names] == [getattr(full, name) for name in names]
    pairs = cast("list[tuple[str, Any]]", json.loads(data, object_pairs_hook=list))
    assert body.doubles_model(data) is ([name for name, _ in pairs].count("model") > 1)


def _spaced(before: bytes, end: int) -> bytes:
    # With as many spaces that it ends there.
    return before + b" " * (end - len(before))


_NUMBER = _spaced(b'{"model":"m","x":1,', 8192 - 14) + b'"max_tokens":1'


@pytest.mark.parametrize(
    "data",
    [
        # For a reader that takes the first value and leaves the rest, the model is another.
        b'{"x":{"a":1' + b" " * 12000 + b"}" + b" " * 8000 + b',"model":"secret"},"model":"allowed"}',
        b'{"x":[1' + b" " * 12000 + b"]" + b" " * 8000 + b',"model":"secret"],"model":"allowed"}',
        _NUMBER + b"000000" + b" " * 20_000 + b',"y":2}',
        _NUMBER.replace(b"max_tokens", b"         n") + b"28" + b" " * 20_000 + b',"y":2}',
        _spaced(b'{"model":', 8191) + b'"' + b"SECRETNAME" * 1000 + b"xx" + b"\\u0061" * 341 + b'"}',
        _spaced(b'{"model":"m","user":', 8191) + b'"' + b"long" * 4000 + b'"}',
        b'{"a":' + b"[" * 900 + b" " * 20_000 + b"]" * 900 + b',"model":"m","b":{"model":"n"}}',
        b'{"a":"' + b"\\\\" * 9000 + b'","model":"m","b":{"model":"n"}}',
        b'{"a":"' + b"\\\\" * 9000 + b'\\"","model":"m"}',
        b'{"a":"' + b"\\ud83d\\ude00" * 3000 + b'","model":"m"}',
        b'{"a":1,' + b" " * 20_000 + b'"model":' + b" " * 20_000 + b'"m","b":2' + b" " * 20_000 + b"}",
    ],
)
def test_what_looks_like_a_stretch_of_text(data: bytes) -> None:
    said, full = body.read(data), _wanted(data)
    if full is None or len(full.model) > body.NAME_MAX:
        assert isinstance(said, ApiError)
    else:
        assert not isinstance(said, ApiError)
        names = Wanted.__struct_fields__
        assert [getattr(said, name) for name in names] == [getattr(full, name) for name in names]


def test_escapes_are_not_cut() -> None:
    for text in ("\\u4e2d\\u6587", "a\\n", "\\n\\t", "x\\u00e9"):
        for shift in range(12):
            data = b'{"a":"' + b"s" * shift + text.encode() * 5000 + b'","model":"m"}'
            short = gist(data)
            assert len(short) < 12_000
            assert msgspec.json.decode(short, type=Wanted).model == "m"


@pytest.mark.parametrize("size", [20_000, 300_000, 3_000_000])
def test_an_image_leaves_little(size: int) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * (size // 8)}}
    text = {"type": "text", "text": 'What is "this"? ' * 50}
    data = json.dumps({"messages": [{"role": "user", "content": [text, image]}], "model": "m"}).encode()
    assert len(gist(data)) < 12_000
    wanted = body.read(data)
    assert not isinstance(wanted, ApiError)
    assert wanted.model == "m"
    assert not body.doubles_model(data)
    assert body.doubles_model(data[:-1] + b',"model":"n"}')


def test_a_broken_body_is_told_of() -> None:
    data = b'{"model":"m","a":"' + b"x" * 50_000 + b'"'
    told = body.read(data)
    assert isinstance(told, ApiError)
    assert "not valid JSON" in told.message
