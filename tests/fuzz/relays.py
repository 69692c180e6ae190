"""An engine's stream cut in several ways: chunks are what h11 says, a relay gives the same each time."""

from typing import Any

import h11
from cortex_gateway.chunks import ChunkReader, payload
from cortex_gateway.relay import StreamRelay
from cortex_gateway.typed import MessagesRelay, ResponsesRelay
from cortex_shared.errors import InvalidInput

from tests.fakes.upstream import chunk
from tests.fuzz.templates import ANSWERS, TAG

_MAX_BYTES = 50_000
_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
_SPICE = (
    b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":null}],"usage":null}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\r\n\r\n',
    b"data: [DONE]\n\n",
    b'data: {"error":{"message":"x","code":400}}\n\n',
    b": ping\n\n",
    b"\r\n",
    b"\r",
    b"\n",
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    b'data: {"choices":[{"index":0,"text":"c"}]}\r\r',
)


def run_relay(data: bytes) -> None:
    """Even first byte: bytes as chunk framing. Odd: events, framed and cut as the rest says."""
    if not data:
        return
    if data[0] & 1:
        _events(data[0] >> 1, data[1:])
    else:
        _framing(data[1:])


def _cuts(data: bytes, sizes: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    at = number = 0
    while at < len(data):
        size = 1 + (sizes[number % len(sizes)] if sizes else 255)
        pieces.append(data[at : at + size])
        at += size
        number += 1
    return pieces


def _dechunk(pieces: list[bytes], max_bytes: int = _MAX_BYTES) -> tuple[bytes, str]:
    reader = ChunkReader(max_bytes)
    content = b""
    try:
        for piece in pieces:
            block, _ = reader.feed(piece)
            content += payload(block) if block else b""
            if reader.ended:
                return content, "ended"
    except InvalidInput:
        return content, "broken"
    return content, "open"


def _framing(data: bytes) -> None:
    half = len(data) // 4
    sizes, stream = data[:half], data[half:].replace(b"\x01", b"0\r\n\r\n").replace(b"\x02", b"\r\n")
    whole, end = _dechunk([stream])
    cut, cut_end = _dechunk(_cuts(stream, sizes))
    # Chunks before the broken one may have been given when they came by themselves.
    assert end == cut_end, (end, cut_end)
    assert cut == whole or (end == "broken" and cut.startswith(whole)), (whole, cut)
    if end != "ended":
        return
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(_HEAD + stream)
    theirs = b""
    try:
        parser.next_event()
        while True:
            event = parser.next_event()
            if not isinstance(event, h11.Data):
                break
            theirs += bytes(event.data)
    except h11.RemoteProtocolError:
        return  # it is stricter about trailers and extensions, which are dropped here
    if isinstance(event, h11.EndOfMessage):
        assert theirs == whole, (theirs, whole)


def _outcome(relay: Any, blocks: list[bytes], *, framed: bool) -> tuple[Any, ...]:
    out = b""
    for block in blocks:
        if framed:
            out += relay.block(chunk(block), block.endswith(b"\n\n"))
        else:
            out += relay.body(block)
    out += relay.end()
    content, end = _dechunk([out], len(out)) if out else (b"", "open")
    assert end == "open", end
    # The last line end of an event may be cut in two, of which one goes with the next event.
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b"\n")
    return content, relay.usage, relay.error is None, relay.complete, relay.committed


def _events(kind: int, data: bytes) -> None:
    half = len(data) // 3
    sizes, told = data[:half], data[half:]
    content = b""
    for number in told:
        if number < len(_SPICE) * 8:
            content += _SPICE[number % len(_SPICE)]
        elif number < 128:
            content += ANSWERS[number % len(ANSWERS)].replace(TAG, b"T" * 13)[:2000]
        else:
            content += bytes((number - 128,))
    make = (StreamRelay, MessagesRelay, ResponsesRelay)[kind % 3]

    def relay() -> Any:
        return make(chunked=True, hide_usage=bool(kind & 4), event_max_bytes=_MAX_BYTES * 100)

    pieces = _cuts(content, sizes)
    results = [
        _outcome(relay(), [content] if content else [], framed=False),
        _outcome(relay(), pieces, framed=False),
        _outcome(relay(), pieces, framed=True),
    ]
    assert results[0] == results[1] == results[2], results
