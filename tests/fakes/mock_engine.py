"""An engine that answers at once, for loads that measure what stands before it: `... PORT [LEDGER]`.

What becomes of a request is said in its prompt, since routers drop other fields: "@EVENTS PAUSE_MS BURST
WORDS@". A stream writes BURST events in one turn of the loop; without a pause it is as fast as its reader
takes it. An answer that is not a stream comes after the pause. Words: `stamp` puts into each event the
time, in nanoseconds of the monotonic clock, at which its schedule had it; `cut` ends a stream in the middle
of an event, `drop` after one, `hang-up` before any answer; `500`, `503`, `429` are answered as such; any
other word names the stream. GET /mock/state tells what is open, /mock/given-up which streams were given up
when; other pages are what routers ask an engine for.
"""

import asyncio
import gc
import json
import re
import sys
import time
from collections import deque
from pathlib import Path
from typing import cast

import uvloop

from tests.fakes.ledger import Ledger

_PLAN = re.compile(rb"@(\d+) (\d+) (\d+)([^@]*)@")
_LENGTH = re.compile(rb"\ncontent-length: *(\d+)", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"\nx-request-id: *([^\r]+)", re.IGNORECASE)
_STREAM_WANTED = re.compile(rb'"stream": ?true')
_USAGE_WANTED = re.compile(rb'"include_usage": ?true')
_USAGE = b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}'
_EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1760000000,'
    b'"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_GIVEN_UP_MAX = 100_000
_BYTES_PER_TOKEN = 4


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _whole(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def _answer(prompt: int, completion: int) -> bytes:
    usage = _USAGE % (prompt, completion, prompt + completion)
    return _whole(
        b'{"id":"chatcmpl-1","object":"chat.completion","created":1760000000,"model":"m","choices":[{"index":'
        b'0,"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}],%b' % (b"x" * 400, usage)
    )


def _embedding(prompt: int) -> bytes:
    return _whole(
        b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,0.25]}],"model":"m",'
        b'"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (prompt, prompt)
    )


_TOKEN = _chunk(_EVENT % b" token")
# The chunk's size is of the stamp's sixteen digits.
_STAMPED = _chunk(_EVENT % (b"0" * 16)).replace(b"0" * 16, b"%016d")
_FINISH = _chunk(_EVENT.replace(b'"finish_reason":null', b'"finish_reason":"stop"') % b"")
_LAST = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1760000000,'
    b'"model":"m","choices":[],%b\n\n'
)
_DONE = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_PLAIN_ANSWER = _answer(7, 7)
_MODELS = _whole(
    b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"mock","max_model_len":9999}]}'
)
_SERVER = _whole(b'{"model_id":"m","served_model_name":"m","model_path":"m","version":"0.5.6"}')
_PAGES = {
    b"/v1/models": _MODELS,
    b"/health": _whole(b"{}"),
    b"/version": _whole(b'{"version":"0.32.0"}'),
    b"/get_model_info": _whole(b'{"model_path":"m","is_generation":true}'),
    b"/model_info": _whole(b'{"model_path":"m","is_generation":true}'),
    b"/get_server_info": _SERVER,
    b"/server_info": _SERVER,
}
_ERROR = b'{"error":{"message":"told to fail","type":"server_error","param":null,"code":null}}'
_ERRORS = {
    b"500": _whole(_ERROR, b"500 Internal Server Error"),
    b"503": _whole(_ERROR, b"503 Service Unavailable"),
    b"429": _whole(_ERROR, b"429 Too Many Requests"),
}


class _State:
    def __init__(self, ledger: Ledger | None) -> None:
        self.ledger = ledger
        self.connections = 0
        self.streams = 0
        self.requests = 0
        self.given_up: deque[tuple[str, int]] = deque(maxlen=_GIVEN_UP_MAX)

    def page(self, path: bytes) -> bytes | None:
        if path == b"/mock/given-up":
            return _whole(json.dumps(list(self.given_up)).encode())
        if path != b"/mock/state":
            return None
        told = {
            "connections": self.connections,
            "streams": self.streams,
            "requests": self.requests,
        }
        return _whole(json.dumps(told).encode())


class _Connection(asyncio.Protocol):
    def __init__(self, state: _State) -> None:
        self._loop = asyncio.get_running_loop()
        self._state = state
        self._parts: list[bytes] = []
        self._want = 0
        self._got = 0
        self._paused = False
        self._open = True
        self._streaming = False
        self._row = -1
        self._sent = self._prompt = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._state.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._open = False
        self._state.connections -= 1
        if self._streaming:
            self._state.given_up.append((self._name, time.monotonic_ns()))
            self._end()

    def eof_received(self) -> None:
        if self._streaming:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._streaming and not self._pause:
            self._turn()

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._got += len(data)
        if self._got < self._want:
            return
        data = b"".join(self._parts)
        head = data.find(b"\r\n\r\n")
        if head < 0:
            self._parts = [data]
            return
        found = _LENGTH.search(data, 0, head)
        self._want = head + 4 + (int(found[1]) if found else 0)
        if self._got < self._want:
            self._parts = [data]
            return
        self._parts, self._got, self._want = [], 0, 0
        self._request(data, head)

    def _request(self, data: bytes, head: int) -> None:
        self._state.requests += 1
        if data.startswith(b"GET"):
            path = data[4 : data.index(b" ", 4)].partition(b"?")[0]
            page = self._state.page(path) or _PAGES.get(path) or _whole(b"{}", b"404 Not Found")
            self._transport.write(page)
            return
        plan = _PLAN.search(data, head)
        if plan is None:
            self._transport.write(_PLAIN_ANSWER)
            return
        self._left, self._pause, self._burst = int(plan[1]), int(plan[2]) / 1000, int(plan[3])
        self._prompt, self._sent = (len(data) - head) // _BYTES_PER_TOKEN, 0
        if self._state.ledger is not None:
            named = _REQUEST_ID.search(data, 0, head)
            self._row = self._state.ledger.begin(named[1] if named else b"?", self._prompt)
        words = plan[4].split()
        if words and words[0] in _ERRORS:
            self._transport.write(_ERRORS[words[0]])
        elif words and words[0] == b"hang-up":
            self._transport.close()
        elif _STREAM_WANTED.search(data, head) is not None:
            self._stream(words, usage=_USAGE_WANTED.search(data, head) is not None)
        else:
            embeds = data.startswith(b"POST /v1/embeddings")
            self._loop.call_later(self._pause, self._answer, embeds)

    def _answer(self, embeds: bool) -> None:
        if self._open:
            self._said(0 if embeds else self._left)
            self._transport.write(_embedding(self._prompt) if embeds else _answer(self._prompt, self._left))

    def _said(self, completion: int) -> None:
        if self._state.ledger is not None:
            self._state.ledger.said(self._row, completion)

    def _stream(self, words: list[bytes], *, usage: bool) -> None:
        self._state.streams += 1
        self._streaming = True
        self._usage = usage
        self._stamp = b"stamp" in words
        self._breaks = words[0] if words and words[0] in (b"cut", b"drop") else b""
        self._name = words[-1].decode() if words else ""
        self._due = time.monotonic()
        self._transport.write(_HEAD)
        self._turn()

    def _turn(self) -> None:
        if not self._streaming or (self._paused and not self._pause):
            return
        count = min(self._burst, self._left)
        self._left -= count
        self._sent += count
        # Before they leave: killed in between, the ledger has more than anybody saw, and never less.
        if self._state.ledger is not None:
            self._state.ledger.sent(self._row, self._sent)
        for _ in range(count):
            if self._stamp:
                self._transport.write(_STAMPED % round(self._due * 1e9))
            else:
                self._transport.write(_TOKEN)
        if not self._left:
            self._last()
        elif self._pause:
            self._due += self._pause
            self._loop.call_at(self._due, self._turn)
        else:
            self._loop.call_soon(self._turn)

    def _last(self) -> None:
        if self._breaks:
            if self._breaks == b"cut":
                self._transport.write(_TOKEN[:50])
            self._end()
            self._transport.close()
            return
        usage = b""
        if self._usage:
            usage = _chunk(_LAST % (_USAGE % (self._prompt, self._sent, self._prompt + self._sent)))
        self._said(self._sent)
        self._transport.write(_FINISH + usage + _DONE)
        self._end()

    def _end(self) -> None:
        self._streaming = False
        self._state.streams -= 1


async def _serve(port: int, ledger: Ledger | None) -> None:
    state = _State(ledger)
    gc.freeze()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(state), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), Ledger(Path(sys.argv[2])) if len(sys.argv) > 2 else None))
