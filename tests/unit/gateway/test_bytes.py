"""Edits and cuts on bytes, checked against the slow and obvious way."""

import json
from typing import Any

import pytest
from cortex_gateway import body, sse
from cortex_gateway.chunks import LAST, ChunkReader, frame, payload
from cortex_gateway.errors import ApiError, from_engine
from cortex_gateway.incoming import Incoming
from cortex_gateway.relay import CROWD_EVENTS, StreamRelay
from cortex_gateway.wanted import Wanted
from cortex_gateway.wire import passed_lines
from cortex_shared.errors import InvalidInput
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.upstream import FINISH, ROLE, chunk, event, usage_event

_NAMES = st.sampled_from(["model", "stream_options", "a", "messages", "é", 'q"uote', "include_usage"])
_SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=12) | _NAMES
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=8,
)
_OPTIONS = st.none() | st.fixed_dictionaries(
    {}, optional={"include_usage": st.booleans() | st.none(), "x": _VALUES}
)


@st.composite
def _documents(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    fields: dict[str, Any] = draw(
        st.dictionaries(_NAMES.filter(lambda n: n != "stream_options"), _VALUES, max_size=4)
    )
    fields["model"] = draw(st.text(min_size=1, max_size=10))
    if draw(st.booleans()):
        fields["stream_options"] = draw(_OPTIONS)
    names = draw(st.permutations(list(fields)))
    document = {name: fields[name] for name in names}
    text = json.dumps(document, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    return document, draw(st.sampled_from(["", " ", "\n"])).encode() + text.encode() + b" \n"


@given(_documents(), st.text(min_size=1))
def test_another_model_is_the_only_change(made: tuple[dict[str, Any], bytes], model: str) -> None:
    document, data = made
    model = model.encode("utf-8", "ignore").decode()
    assert json.loads(body.with_model(data, model)) == {**document, "model": model}


@pytest.mark.parametrize(
    ("data", "renamed"),
    [
        (b'{"model":"a"}', b'{"model":"Z"}'),
        (b' { "model" : "a" , "x":1} ', b' { "model" : "Z" , "x":1} '),
        (b'{"x":{"model":"b"},"model":"a"}', b'{"x":{"model":"b"},"model":"Z"}'),
        (b'{"model":"a","x":{"model":"b"}}', b'{"model":"Z","x":{"model":"b"}}'),
        (b'{"model":"a","x":[{"model":"b"},{}]}', b'{"model":"Z","x":[{"model":"b"},{}]}'),
        (b'{"model":"a","x\\"model":"b"}', b'{"model":"Z","x\\"model":"b"}'),
        (b'{"model":"a","x":"model"}', b'{"model":"Z","x":"model"}'),
        (b'{"x":"model","model":"a","y":"}"}', b'{"x":"model","model":"Z","y":"}"}'),
        (b'{"mod\\u0065l":"a","y":{"model":"b"}}', b'{"mod\\u0065l":"Z","y":{"model":"b"}}'),
        (b'{"x\\"model":"b","mod\\u0065l":"a"}', b'{"x\\"model":"b","mod\\u0065l":"Z"}'),
        (b'{"mod\\u0065l":"a","y":[1]}', b'{"mod\\u0065l":"Z","y":[1]}'),
        (b'{"model":"a","model":"b","y":{"z":[]}}', b'{"model":"a","model":"Z","y":{"z":[]}}'),
    ],
)
def test_the_right_model_is_changed(data: bytes, renamed: bytes) -> None:
    assert body.with_model(data, "Z") == renamed
    # And where much stands behind it.
    long = b',"long":"' + b"l" * 10_000 + b'"}'
    end = data.rindex(b"}")
    if data.count(b'"model":"') == 1:
        assert body.with_model(data[:end] + long, "Z") == renamed[: renamed.rindex(b"}")] + long


@given(_documents())
def test_usage_is_asked_for_and_nothing_else_changes(made: tuple[dict[str, Any], bytes]) -> None:
    document, data = made
    wanted = body.read(data)
    assert not isinstance(wanted, ApiError)
    expected: dict[str, Any] = {**(document.get("stream_options") or {}), "include_usage": True}
    edited = body.with_usage(data, wanted.stream_options)
    assert json.loads(edited, object_pairs_hook=_no_doubles) == {**document, "stream_options": expected}


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


@given(_documents())
def test_spans_find_every_value(made: tuple[dict[str, Any], bytes]) -> None:
    document, data = made
    assert {key: json.loads(data[start:end]) for key, start, end in body.spans(data)} == document


@pytest.mark.parametrize(
    ("data", "doubled"),
    [
        (b'{"model":"a"}', False),
        (b'{"model":"a","x":{"model":"b"}}', False),
        (b'{"model":"a","x":"\\"model\\":1"}', False),
        (b'{"model":"a","model":"b"}', True),
        (b'{"model":"a","mod\\u0065l":"b"}', True),
    ],
)
def test_a_model_given_twice_is_seen(data: bytes, *, doubled: bool) -> None:
    assert body.doubles_model(data) is doubled


_EVENTS = st.lists(
    st.sampled_from(
        [
            b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
            b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n',
            b'data: {"choices":[{"delta":{"content":"\xc3\xa9 \\"error\\""}}]}\r\n\r\n',
            b"data:x\r\r",
            b": comment\n\n",
            b'event: e\ndata: {"choices":[{"text":"b"}]}\n\n',
            b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
        ]
    ),
    min_size=1,
    max_size=12,
)


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces: list[bytes] = []
    position = 0
    for size in sizes:
        pieces.append(data[position : position + size])
        position += size
    return [piece for piece in [*pieces, data[position:]] if piece]


@given(_EVENTS, st.lists(st.integers(1, 60), max_size=30), st.lists(st.integers(1, 40), max_size=60))
def test_what_is_relayed_is_what_came_wherever_it_was_cut(
    events: list[bytes], chunk_sizes: list[int], read_sizes: list[int]
) -> None:
    content = b"".join(events) + sse.DONE_EVENT
    wire = b"".join(frame(piece) for piece in _cut(content, chunk_sizes)) + LAST
    reader = ChunkReader(10_000)
    relay = StreamRelay(chunked=True, hide_usage=True, event_max_bytes=10_000)
    out = b""
    for piece in _cut(wire, read_sizes):
        block, whole = reader.feed(piece)
        if block:
            out += relay.block(block, whole)
    assert reader.ended
    assert not reader.excess
    out += relay.end()
    assert payload(out) == content
    assert relay.complete
    assert relay.tokens == sum(b'"a"' in e or b"error" in e or b'"b"' in e for e in events)


@pytest.mark.parametrize(
    "wire",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"0x1\r\na\r\n",
        b"1\r\nab\r\n",
        b"1_0\r\n",
        b"fffffffff\r\n",
        b"1" * 300,
        b"ffff\r\n",
    ],
)
def test_broken_framing_is_refused(wire: bytes) -> None:
    with pytest.raises(InvalidInput):
        ChunkReader(1000).feed(wire)


def test_trailers_of_an_answer_are_dropped() -> None:
    reader = ChunkReader(1000)
    assert reader.feed(b"3;x=y\r\nabc\r\n0\r\nTrailer: 1\r\n")[0] == b"3;x=y\r\nabc\r\n"
    assert not reader.ended
    assert reader.feed(b"\r\nHTTP")[0] == b""
    assert (reader.ended, reader.excess) == (True, True)
    assert payload(b"3;x=y\r\nabc\r\n") == b"abc"


def test_what_is_not_utf_8_is_refused_or_passed_over() -> None:
    for data in (b'{"model":"\xff"}', b'{"model":"m","user":"\xff"}', b'{"model":"' + b"m" * 2000 + b'"}'):
        assert isinstance(body.read(data), ApiError)
    odd = b'{"model":"m","stream_options":{"\xff":1},"\xff":"\xff"}'
    wanted = body.read(odd)
    assert isinstance(wanted, Wanted)
    assert b'"include_usage":true' in body.with_usage(odd, wanted.stream_options)
    assert (
        body.with_model(b'{"\xff":{"model":"x"},"model":"m"}', "n") == b'{"\xff":{"model":"x"},"model":"n"}'
    )
    assert sse.read(b'data: {"choices":[{"text":"\xff"}]}\n\n').opaque
    assert sse.status_of(b'{"error":{"type":"\xff"}}') == 500
    assert from_engine(500, b'{"error":{"message":"\xff"}}').status == 500


def test_the_name_of_an_error_event_is_no_type_of_error() -> None:
    told = from_engine(500, b'{"type":"error","code":"oom","message":"out of memory","param":null}')
    assert (told.type, told.code, told.message) == ("server_error", "oom", "out of memory")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"type": "overloaded_error"}, 503),
        ({"type": "rate_limit_error"}, 429),
        ({"type": "BadRequestError"}, 400),
        ({"type": "api_error"}, 500),
        ({"type": ["overloaded_error"]}, 500),
        ({"type": "overloaded_error", "code": 507}, 507),
    ],
)
def test_an_error_event_stands_for_a_status(error: dict[str, object], status: int) -> None:
    assert sse.status_of(json.dumps({"type": "error", "error": error}).encode()) == status


def test_every_connection_header_names_what_stays_here() -> None:
    client = [
        (b"connection", b"x-a"),
        (b"x-a", b"1"),
        (b"connection", b"x-b"),
        (b"x-b", b"2"),
        (b"x-c", b"3"),
    ]
    head = passed_lines(client)
    assert [line[:3] for line in head.split(b"\r\n") if line.startswith((b"x-a", b"x-b", b"x-c"))] == [b"x-c"]


def test_a_body_in_very_many_pieces() -> None:
    incoming, whole = Incoming(), bytes(range(256)) * 40
    for at in range(0, len(whole), 2):
        incoming.add(whole[at : at + 2])
    assert incoming.take_body() == whole
    assert len(incoming.parts) < 2000
    one = Incoming()
    assert one.take_body() == b""
    one.add(b"{}")
    assert one.take_body() == b"{}"


def test_the_quick_reader_gives_what_the_slow_one_gives() -> None:
    pieces = [
        chunk(event("a")),
        chunk(event("b"))[:20],
        chunk(event("b"))[20:] + chunk(event("c")),
        chunk(event("d") + event("e")),
        chunk(b": ping\n\n"),
        chunk(event("f")[:10]),
        chunk(event("f")[10:]),
        chunk(event('"error"')),
        chunk(event("g")) + chunk(event("h")) + chunk(b": x\n\n"),
        chunk(event("z")),
        chunk(FINISH) + chunk(usage_event(7, 8)) + chunk(b"data: [DONE]\n\n"),
    ]
    written: list[bytes] = []
    slow: list[bytes] = []
    relay = StreamRelay(chunked=True, hide_usage=True, event_max_bytes=100_000)
    chunks = ChunkReader(100_000)

    def read_slowly(data: bytes) -> None:
        slow.append(data)
        block, whole = chunks.feed(data)
        written.append(relay.block(block, whole) if block else b"")

    read_slowly(chunk(ROLE) + chunk(event("first")))
    read = relay.quick_reader(chunks, written.append, read_slowly, lambda: None)
    for piece in pieces:
        read(piece)
    expected = event("first"), *map(event, "abc"), event("d") + event("e"), b": ping\n\n", event("f")
    rest = event('"error"'), event("g"), event("h"), b": x\n\n", event("z"), FINISH, b"data: [DONE]\n\n"
    assert payload(b"".join(written)) == b"".join((ROLE, *expected, *rest))
    assert (relay.tokens, relay.complete, relay.usage is not None) == (11, True, True)
    assert chunk(event("z")) not in slow  # a size that has come before, in a whole chunk
    assert {pieces[1], pieces[2], pieces[5], pieces[6], pieces[8], pieces[-1]} <= set(slow)


def test_a_quick_reader_tells_that_events_come_one_by_one() -> None:
    relay = StreamRelay(chunked=True, hide_usage=True, event_max_bytes=100_000)
    chunks, written, crowds = ChunkReader(100_000), list[bytes](), list[int]()

    def read_slowly(data: bytes) -> None:
        block, whole = chunks.feed(data)
        written.append(relay.block(block, whole))

    read = relay.quick_reader(chunks, written.append, read_slowly, lambda: crowds.append(relay.tokens))
    for _ in range(3 * CROWD_EVENTS):
        read(chunk(event("a")))
    assert crowds == [CROWD_EVENTS, 2 * CROWD_EVENTS, 3 * CROWD_EVENTS]
    assert len(written) == 3 * CROWD_EVENTS
