"""An engine in raw asyncio that does what it is told: streams, dies, stalls, refuses, and remembers.

`async with Upstream() as engine`, then `engine.reply = Reply(...)` or `engine.replies.append(...)`.
"""

import asyncio
import email
import json
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast, overload

import httptools

from tests.fakes.surfaces import (
    CACHED_TOKENS,
    PROMPT_TOKENS,
    SOUND,
    Stream,
    answer_of,
    stream_of,
    to_json,
)


@dataclass
class Reply:
    """What becomes of one request."""

    status: int = 200
    body: bytes | None = None
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict[str, str])
    delay_seconds: float = 0
    events: int = 3
    interval_seconds: float = 0
    die: str = ""  # at_once, after_head, mid_body, before_content, mid_stream, mid_event, mid_chunk, no_done
    close: bool = False
    chunked: bool = True
    raw: list[bytes] | None = None  # pieces written as they are
    error_event: bytes | None = None
    usage: bool = True
    hold_after: int | None = None  # events after which the stream stands still until `Upstream.go`


@dataclass
class Request:
    """What came."""

    path: str
    headers: dict[str, str]
    raw_body: bytes
    method: str = "POST"

    @property
    def body(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.raw_body))

    @property
    def form(self) -> dict[str, bytes]:
        """The fields of a form, read by the standard library."""
        kind = self.headers["content-type"].encode()
        parsed = email.message_from_bytes(b"content-type: %b\r\n\r\n%b" % (kind, self.raw_body))
        fields: dict[str, bytes] = {}
        for part in parsed.walk():
            name = part.get_param("name", header="content-disposition")
            if isinstance(name, str):
                fields[name] = cast("bytes", part.get_payload(decode=True))
        return fields

    @property
    def fields(self) -> dict[str, Any]:
        """What it says, form or JSON or nothing."""
        if self.headers.get("content-type", "").startswith("multipart/"):
            return {name: value.decode("latin-1") for name, value in self.form.items()}
        return self.body if self.raw_body else {}

    @property
    def wants_stream(self) -> bool:
        """Whether it asks for events."""
        if self.method == "GET":
            return "stream=true" in self.path
        return self.fields.get("stream") in (True, "true") and not self.path.endswith("/speech")


def event(content: str | None, **choice: Any) -> bytes:
    """One event of a chat stream, spaced as vLLM does."""
    delta = {} if content is None else {"content": content}
    document = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": None, **choice}],
    }
    return b"data: " + to_json(document) + b"\n\n"


ROLE = event(None, delta={"role": "assistant", "content": ""})
FINISH = event(None, finish_reason="stop")
DONE = b"data: [DONE]\n\n"


def usage_event(prompt: int, completion: int) -> bytes:
    """The event that `include_usage` asks for."""
    document: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
        },
    }
    return b"data: " + to_json(document) + b"\n\n"


def chunk(data: bytes) -> bytes:
    """HTTP chunk framing."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Upstream:
    """The engine: `requests` it got, `aborted` answers, `connections` made."""

    def __init__(self, reply: Reply | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.reply = reply or Reply()
        self.replies: deque[Reply] = deque()
        self.requests: list[Request] = []
        self.connections = 0
        self.aborted = 0
        self.most_open = 0
        self.changed = asyncio.Event()
        self.go = asyncio.Event()
        self.sent_events = 0
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'' if self.tls is None else 's'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        """Listen (again)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", port or self.port, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._open):
            connection.transport.abort()
        await asyncio.sleep(0)

    def close_idle(self) -> None:
        """Close connections cleanly, as an engine does with idle ones."""
        for connection in list(self._open):
            connection.transport.close()

    @property
    def open_answers(self) -> int:
        """How many answers are under way."""
        return sum(connection.busy for connection in self._open)

    async def until(self, condition: str, count: int, seconds: float = 10) -> None:
        """Wait until `requests`, `aborted`, `connections` or `sent_events` is at least `count`."""
        async with asyncio.timeout(seconds):
            while True:
                value = getattr(self, condition)
                if (value if isinstance(value, int) else len(value)) >= count:
                    return
                self.changed.clear()
                await self.changed.wait()

    def opened(self, connection: "_Connection") -> None:
        self._open.add(connection)
        self.connections += 1
        self.changed.set()

    def closed(self, connection: "_Connection", *, aborted: bool) -> None:
        self._open.discard(connection)
        self.aborted += aborted
        self.changed.set()

    def take(self, request: Request) -> Reply:
        self.requests.append(request)
        self.most_open = max(self.most_open, self.open_answers + 1)
        self.changed.set()
        return self.replies.popleft() if self.replies else self.reply


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._task: asyncio.Task[None] | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._parser = httptools.HttpRequestParser(self)
        self._new()

    def _new(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._upstream.opened(self)

    @property
    def busy(self) -> bool:
        """Whether it answers just now."""
        return self._task is not None and not self._task.done()

    def connection_lost(self, exc: Exception | None) -> None:
        busy = self.busy
        if self._task is not None:
            self._task.cancel()
        self._upstream.closed(self, aborted=busy)

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        request = Request(self._url.decode(), self._headers, self._body, method)
        self._new()
        reply = self._upstream.take(request)
        self._task = asyncio.get_running_loop().create_task(self._answer(request, reply))

    async def _answer(self, request: Request, reply: Reply) -> None:
        if reply.delay_seconds:
            await asyncio.sleep(reply.delay_seconds)
        if reply.die == "at_once":
            self._die()
            return
        if reply.raw is not None:
            for piece in reply.raw:
                self.transport.write(piece)
                await asyncio.sleep(0.005)
            if reply.close:
                self.transport.close()
            return
        if reply.body is None and reply.status == 200 and request.wants_stream:
            await self._stream(request, reply)
        else:
            self._whole(request, reply)
        if reply.close:
            self.transport.close()

    def _die(self) -> None:
        self._task = None
        self.transport.abort()

    def _head(self, reply: Reply, kind: str, framing: str) -> bytes:
        lines = [f"HTTP/1.1 {reply.status} X", f"content-type: {kind}", framing]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        if reply.close:
            lines.append("connection: close")
        return ("\r\n".join(line for line in lines if line) + "\r\n\r\n").encode()

    def _whole(self, request: Request, reply: Reply) -> None:
        body, kind = reply.body, reply.kind
        if body is None and request.path.endswith("/speech") and reply.status == 200:
            body, kind = SOUND, "audio/mpeg"
        if body is None:
            body = _answer_body(request, reply)
        if reply.chunked and reply.headers.get("x-chunked"):
            self.transport.write(self._head(reply, kind, "transfer-encoding: chunked"))
            half = len(body) // 2
            self.transport.write(chunk(body[:half]))
            if reply.die == "mid_body":
                self.transport.close()
                self._task = None
                return
            self.transport.write(chunk(body[half:]) + b"0\r\n\r\n")
            return
        self.transport.write(self._head(reply, kind, f"content-length: {len(body)}"))
        if reply.die == "after_head":
            self._die()
        elif reply.die == "mid_body":
            self.transport.write(body[: len(body) // 2])
            self.transport.close()
            self._task = None
        else:
            self.transport.write(body)

    async def _write(self, data: bytes, reply: Reply) -> None:
        await self._can_write.wait()
        self.transport.write(chunk(data) if reply.chunked else data)

    async def _break_off(self, reply: Reply, lost: bytes) -> None:
        if reply.die == "mid_event":
            await self._write(lost[:30], reply)
        elif reply.die == "mid_chunk":
            self.transport.write(chunk(lost)[:30])
        elif reply.die == "no_done":
            self.transport.write(b"0\r\n\r\n")
            return
        self._task = None
        self.transport.close()

    async def _stream(self, request: Request, reply: Reply) -> None:
        framing = "transfer-encoding: chunked" if reply.chunked else ""
        self.transport.write(self._head(reply, "text/event-stream; charset=utf-8", framing))
        stream = stream_of(request.path.partition("?")[0], reply.events, request.fields)
        stream = stream or _chat_stream(request, reply)
        for first in stream.first:
            await self._write(first, reply)
        if reply.error_event is not None:
            await self._write(reply.error_event, reply)
            self.transport.write(b"0\r\n\r\n" if reply.chunked else b"")
            return
        if reply.die == "before_content":
            await asyncio.sleep(0.01)
            self._die()
            return
        for number, content in enumerate(stream.content):
            if reply.hold_after == number:
                await self._upstream.go.wait()
            if reply.interval_seconds:
                await asyncio.sleep(reply.interval_seconds)
            await self._write(content, reply)
            self._upstream.sent_events += 1
            self._upstream.changed.set()
        if reply.die:
            await asyncio.sleep(0.02)
            await self._break_off(reply, stream.content[-1] if stream.content else event("lost"))
            return
        for last in stream.last:
            await self._write(last, reply)
        self.transport.write(b"0\r\n\r\n" if reply.chunked else b"")
        if not reply.chunked:
            self.transport.close()


def _chat_stream(request: Request, reply: Reply) -> Stream:
    options: dict[str, Any] = request.body.get("stream_options") or {}
    asked = reply.usage and options.get("include_usage")
    usage = [usage_event(PROMPT_TOKENS, reply.events)] if asked else []
    # Some streams are longer than anybody reads.
    return Stream([ROLE], _Events(reply.events), [FINISH, *usage, DONE])


class _Events(Sequence[bytes]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        numbers = range(self._count)[at]
        return event(f"t{numbers} ") if isinstance(numbers, int) else [event(f"t{n} ") for n in numbers]


def _answer_body(request: Request, reply: Reply) -> bytes:
    if reply.status >= 400:
        return to_json({"error": {"code": reply.status, "message": "told to fail", "type": "server_error"}})
    other = answer_of(request.path, reply.events, request.fields)
    if other is not None:
        return to_json(other)
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": reply.events, "total_tokens": 10}
    if request.path.endswith("/embeddings"):
        vector: dict[str, Any] = {"object": "embedding", "index": 0, "embedding": "AACAPwAAAEA="}
        if request.body.get("encoding_format") != "base64":
            vector["embedding"] = [1.0, 2.0]
        usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS}
        return to_json({"object": "list", "data": [vector], "model": "m", "usage": usage})
    text = "".join(f"t{number} " for number in range(reply.events))
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if request.path.endswith("/chat/completions"):
        choice["message"] = {"role": "assistant", "content": text}
        kind = "chat.completion"
    else:
        choice["text"] = text
        kind = "text_completion"
    return to_json(
        {"id": "1", "object": kind, "created": 1, "model": "m", "choices": [choice], "usage": usage}
    )
