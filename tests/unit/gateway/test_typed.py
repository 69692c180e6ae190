"""Streams with named events: the same whatever cuts them, and what they tell of usage, ends and errors."""

from collections.abc import Callable

import pytest
from cortex_gateway.chunks import LAST, ChunkReader, frame
from cortex_gateway.typed import MessagesRelay, PassRelay, ResponsesRelay, TypedRelay
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.surfaces import (
    CACHED_TOKENS,
    PROMPT_TOKENS,
    RESPONSE_ID,
    Stream,
    messages_stream,
    named,
    response,
    responses_stream,
)

type Make = Callable[..., TypedRelay]

KINDS: list[tuple[Make, Stream]] = [
    (ResponsesRelay, responses_stream(4)),
    (MessagesRelay, messages_stream(4)),
]
both = pytest.mark.parametrize(("make", "stream"), KINDS)


def relay_of(make: Make, *, chunked: bool = True, event_max_bytes: int = 100_000) -> TypedRelay:
    return make(chunked=chunked, hide_usage=False, event_max_bytes=event_max_bytes)


def unframed(wire: bytes) -> bytes:
    content = b""
    while wire:
        size, _, rest = wire.partition(b"\r\n")
        content += rest[: int(size, 16)]
        wire = rest[int(size, 16) + 2 :]
    return content


def run(relay: TypedRelay, pieces: list[bytes]) -> bytes:
    """What the client gets of an engine's chunked answer that comes in these pieces, without framing."""
    reader = ChunkReader(100_000)
    out = b""
    for piece in pieces:
        block, whole = reader.feed(piece)
        out += relay.block(block, whole) if block else b""
    assert reader.ended
    return unframed(out + relay.end())


def wire_of(stream: Stream) -> tuple[bytes, bytes]:
    events = [*stream.first, *stream.content, *stream.last]
    return b"".join(events), b"".join(map(frame, events)) + LAST


def check(relay: TypedRelay) -> None:
    assert relay.complete
    assert relay.error is None
    assert relay.tokens == 4
    usage = relay.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (PROMPT_TOKENS, 4)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == CACHED_TOKENS


@both
def test_a_stream_is_the_same_wherever_it_is_cut(make: Make, stream: Stream) -> None:
    content, wire = wire_of(stream)
    for position in range(1, len(wire)):
        relay = relay_of(make)
        assert run(relay, [wire[:position], wire[position:]]) == content
        check(relay)


@both
@given(chunks=st.lists(st.integers(1, 300), max_size=30), reads=st.lists(st.integers(1, 200), max_size=60))
def test_nor_does_it_matter_how_it_is_chunked(
    make: Make, stream: Stream, chunks: list[int], reads: list[int]
) -> None:
    content, _ = wire_of(stream)

    def cut(data: bytes, sizes: list[int]) -> list[bytes]:
        pieces: list[bytes] = []
        for size in sizes:
            pieces.append(data[:size])
            data = data[size:]
        return [piece for piece in [*pieces, data] if piece]

    wire = b"".join(map(frame, cut(content, chunks))) + LAST
    relay = relay_of(make)
    assert run(relay, cut(wire, reads)) == content
    check(relay)


@both
def test_nothing_is_given_before_the_first_content(make: Make, stream: Stream) -> None:
    relay = relay_of(make)
    for event in stream.first:
        assert relay.block(frame(event), True) == b""
        assert not relay.committed
    assert unframed(relay.block(frame(stream.content[0]), True)) == b"".join(stream.first) + stream.content[0]
    assert relay.committed
    # From here on the engine's own bytes go on.
    block = frame(stream.content[1])
    assert relay.block(block, True) is block
    assert relay.tokens == 2


@both
def test_a_cut_stream_is_not_complete(make: Make, stream: Stream) -> None:
    for count in range(len(stream.last)):
        relay = relay_of(make)
        for event in (*stream.first, *stream.content, *stream.last[:count]):
            relay.body(event)
        relay.end()
        assert not relay.complete
        assert relay.tokens == 4


@both
def test_words_of_the_protocol_in_the_content_mean_nothing(make: Make, stream: Stream) -> None:
    text = '"error": {"type":"response.completed","response":{}}\nevent: error\n\n"message_delta" .delta"'
    if make is ResponsesRelay:
        event = named("response.output_text.delta", delta=text)
    else:
        event = named("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    relay = relay_of(make)
    for first in (*stream.first, stream.content[0]):
        relay.body(first)
    assert unframed(relay.block(frame(event), True)) == event
    assert (relay.tokens, relay.done, relay.error) == (2, False, None)


@both
def test_an_error_is_held_back_and_ends_it(make: Make, stream: Stream) -> None:
    relay = relay_of(make)
    for event in (*stream.first, stream.content[0]):
        relay.body(event)
    error = named("error", error={"type": "api_error", "message": "no"})
    out = relay.block(frame(stream.content[1] + error + stream.content[2]), True)
    assert unframed(out) == stream.content[1]
    assert relay.error is not None
    assert b'"no"' in relay.error
    assert not relay.complete


def test_a_failed_response_is_an_error_before_content_and_an_event_after() -> None:
    failed = named("response.failed", response=response(0, status="failed", error={"code": "server_error"}))
    stream = responses_stream(2)
    early = relay_of(ResponsesRelay)
    for event in (*stream.first, failed):
        early.body(event)
    assert early.error is not None
    assert not early.failed
    late = relay_of(ResponsesRelay)
    for event in (*stream.first, stream.content[0]):
        late.body(event)
    assert unframed(late.body(failed)) == failed
    assert (late.failed, late.complete, late.error) == (True, True, None)


def test_a_response_in_the_background_is_told_at_once() -> None:
    stream = responses_stream(1, background=True)
    relay = relay_of(ResponsesRelay)
    assert unframed(relay.body(stream.first[0])) == stream.first[0]
    assert relay.id == RESPONSE_ID


def test_what_the_prompt_took_is_known_before_the_end() -> None:
    stream = messages_stream(3)
    relay = relay_of(MessagesRelay)
    for event in (*stream.first, stream.content[0]):
        relay.body(event)
    assert relay.usage is None
    assert relay.began is not None
    assert relay.began.prompt_tokens == PROMPT_TOKENS


@both
def test_metadata_without_end_is_not_held_without_end(make: Make, stream: Stream) -> None:
    relay = relay_of(make)
    given = 0
    for _ in range(2000):
        given += len(relay.body(stream.first[0]))
    assert given > 0


@both
def test_an_event_without_end_is_too_large(make: Make, stream: Stream) -> None:
    relay = relay_of(make, event_max_bytes=1000)
    relay.body(b"data: " + b"x" * 2000)
    assert relay.too_large


def test_other_answers_pass_as_they_come() -> None:
    sound = PassRelay(chunked=True, events=False)
    block = frame(b"\x00\x01data:")
    assert sound.block(block, False) is block
    assert sound.body(b"abc") == frame(b"abc")
    assert (sound.tokens, sound.end(), sound.complete) == (0, b"", True)
    plain = PassRelay(chunked=False, events=True)
    assert plain.block(frame(b'data: {"x":1}\n\n'), True) == b'data: {"x":1}\n\n'
    plain.body(b'data: {"usage":{"input_tokens":3,"output_tokens":4}}\n\n')
    assert plain.tokens == 2
    assert plain.usage is not None
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (3, 4)
