"""What fuzzed clients and engines say besides noise; %T is the tag of the request that it is about."""

import json
from typing import Any

from tests.fakes.upstream import DONE, FINISH, ROLE, chunk, event, usage_event

TAG = b"%T"
_AUTH = b"host: x\r\nauthorization: Bearer sk-fuzz\r\nx-request-id: %T\r\n"


def _chat(**fields: Any) -> bytes:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "%T"}], **fields}
    return json.dumps(body).encode()


def _post(
    body: bytes, path: bytes = b"/v1/chat/completions", lines: bytes = b"", version: bytes = b"1.1"
) -> bytes:
    # A tag has 13 bytes, its place two.
    length = len(body) + 11 * body.count(TAG)
    return b"POST %b HTTP/%b\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
        path,
        version,
        _AUTH,
        lines,
        length,
        body,
    )


def _get(method: bytes, path: bytes) -> bytes:
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, path, _AUTH)


def _chunked(body: bytes, trailer: bytes = b"") -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\n%btransfer-encoding: chunked\r\n\r\n" % _AUTH
    cut = body.index(TAG)
    return head + chunk(body[:cut]) + b"d;x\r\n%T\r\n" + chunk(body[cut + 2 :]) + b"0\r\n" + trailer + b"\r\n"


def _anonymous(body: bytes) -> bytes:
    return _post(body).replace(b"x-request-id: %T\r\n", b"")


_MESSAGES = b'{"model":"m","max_tokens":5,"stream":true,"messages":[{"role":"user","content":"%T"}]}'
_RESPONSES = b'{"model":"m","stream":true,"input":"%T"}'
_SIMPLE = _chat()

REQUESTS: tuple[bytes, ...] = (
    _post(_SIMPLE),
    _post(_chat(stream=True)),
    _chunked(_SIMPLE),
    _get(b"GET", b"/v1/models"),
    _get(b"HEAD", b"/v1/models"),
    _post(b"0123456789", b"/nowhere"),
    _post(_SIMPLE, lines=b"expect: 100-continue\r\n"),
    _post(_SIMPLE).replace(b"sk-fuzz", b"sk-none"),
    _post(_chat(model="other")),
    _post(_chat(stream=True), version=b"1.0"),
    _post(_SIMPLE, lines=b"connection: close\r\n"),
    _post(_SIMPLE, lines=b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: x\r\n"),
    _post(_chat(model="alias", stream=True)),
    _post(_chat(stream=True, stream_options={"include_usage": True})),
    _post(_chat(padding="x" * 70_000)),
    _get(b"OPTIONS", b"/v1/chat/completions"),
    _post(_MESSAGES, b"/v1/messages", b"x-api-key: sk-fuzz\r\nanthropic-version: 2023-06-01\r\n"),
    _post(_RESPONSES, b"/v1/responses"),
    _post(b'{"model":"m","input":"%T"}', b"/v1/embeddings"),
    _post(b"{"),
    _post(b'{"model":"m","input":"%T"}', b"/v1/audio/speech"),
    _chunked(_SIMPLE, b"x-trailer: 1\r\n"),
    _post(b"x" * 70_000, b"/nowhere"),
    _post(_chat(stream=True)).partition(b"\r\n\r\n")[0],
    b"\r\n\r\n",
    _SIMPLE,
    b"5;a=b\r\n",
    b"transfer-encoding: chunked\r\n",
    b"content-length: 5\r\n",
    b"0\r\n\r\n",
    _get(b"GET", b"/reads-a-body"),
    _post(b"y" * 100, b"/reads-a-body"),
    # Without an id of its own a head may be known, and its body be read to where it stays.
    _anonymous(_SIMPLE),
    _anonymous(_chat(stream=True)),
    _anonymous(_chat(padding="x" * 140_000)),
    _anonymous(_chat(padding="x" * 190_000, stream=True)),
)
HEADS = frozenset((4,))
"""Of these, the requests whose answers have no body."""

_OK = b"HTTP/1.1 200 OK\r\n"
_JSON = b"content-type: application/json\r\n"
_SSE = b"content-type: text/event-stream\r\n"
_CODED = b"transfer-encoding: chunked\r\n"


def _whole(body: bytes, status: bytes = b"200 OK", lines: bytes = b"") -> bytes:
    length = len(body) + 11 * body.count(TAG)
    return b"HTTP/1.1 %b\r\n%b%bcontent-length: %d\r\n\r\n%b" % (status, _JSON, lines, length, body)


def _tagged(data: bytes) -> bytes:
    """A chunk whose content has a tag in it."""
    return b"%x\r\n%b\r\n" % (len(data) + 11 * data.count(TAG), data)


_USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":4}'
_ANSWER = b'{"id":"1","choices":[{"index":0,"message":{"content":"%T"}}],' + _USAGE + b"}"
_CONTENT = event("%T ")
_STREAM_HEAD = _OK + _SSE + _CODED + b"\r\n"


def _typed(**data: Any) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


_TYPED = (
    _typed(type="message_start", message={"id": "x", "usage": {"input_tokens": 3}}),
    _typed(type="content_block_delta", delta={"type": "text_delta", "text": "%T"}),
    _typed(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 4}),
    _typed(type="message_stop"),
)
_RESPONSE = (
    _typed(type="response.created", response={"id": "resp_1", "status": "in_progress"}),
    _typed(type="response.output_text.delta", delta="%T"),
    _typed(
        type="response.completed",
        response={"id": "resp_1", "status": "completed", "usage": {"input_tokens": 3, "output_tokens": 4}},
    ),
)
_ERROR = b'{"error":{"message":"%T failed","type":"server_error","code":500}}'

ANSWERS: tuple[bytes, ...] = (
    _whole(_ANSWER),
    _OK + _JSON + _CODED + b"\r\n" + _tagged(_ANSWER) + b"0\r\n\r\n",
    _STREAM_HEAD,
    chunk(ROLE),
    _tagged(_CONTENT),
    chunk(FINISH),
    chunk(usage_event(3, 4)),
    chunk(DONE),
    b"0\r\n\r\n",
    _tagged(b"data: " + _ERROR + b"\n\n"),
    _whole(_ERROR, b"500 X"),
    _whole(_ERROR, b"503 X"),
    _whole(_ERROR, b"429 X"),
    b"HTTP/1.1 100 Continue\r\n\r\n",
    _tagged(_CONTENT.replace(b"\n", b"\r\n")),
    _OK + _SSE + b"\r\n",
    _tagged(event("%T" + "x" * 70_000)),
    _CONTENT,
    _STREAM_HEAD
    + chunk(ROLE)
    + _tagged(_CONTENT) * 3
    + chunk(FINISH)
    + chunk(usage_event(3, 4))
    + chunk(DONE)
    + b"0\r\n\r\n",
    _whole(_ERROR, b"400 X"),
    _whole(_ANSWER, lines=b"connection: close\r\n"),
    _STREAM_HEAD + b"".join(_tagged(each) for each in _TYPED) + b"0\r\n\r\n",
    _STREAM_HEAD + b"".join(_tagged(each) for each in _RESPONSE) + b"0\r\n\r\n",
    _tagged(_CONTENT + _CONTENT),
    chunk(b": comment\n\n"),
    _OK + b"content-type: audio/mpeg\r\n" + _CODED + b"\r\n" + _tagged(b"%T"),
    b"HTTP/1.1 204 No Content\r\n\r\n",
    _tagged(_CONTENT[:20]),
    _tagged(_CONTENT[20:]),
    ROLE + _CONTENT + FINISH + DONE,
    _whole(_ERROR, b"401 X"),
    _STREAM_HEAD + chunk(ROLE) + _tagged(_CONTENT),
)
