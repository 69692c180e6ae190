"""An engine with a prefix cache, simulated: prefill is serial and takes time by what is not cached.

`python -m tests.bench.prefix_engine PORT CACHE_TOKENS`. A prompt is its messages' text, 4 characters a token.
"""

import asyncio
import json
import re
import sys
from collections import OrderedDict, deque
from typing import Any, cast

import uvloop

from tests.bench.prefix_load import CHARS_PER_TOKEN, TOKEN

BLOCK_TOKENS = 16
FIXED_SECONDS = 0.004
TOKEN_SECONDS = 120e-6
PAUSE_SECONDS = 0.010  # between two tokens of an answer
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_HEAD = '{"id":"c","object":"chat.completion.chunk","created":1760000000,"model":"m",'


def seconds(uncached_tokens: float) -> float:
    """How long the prefill of a prompt takes."""
    return FIXED_SECONDS + TOKEN_SECONDS * uncached_tokens


class Cache:
    """Blocks of prompts and answers, least recently used first to go; of one text the end goes first."""

    def __init__(self, tokens: int) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._max = tokens // BLOCK_TOKENS

    def take(self, text: str) -> int:
        """Use and keep a text; how many of its tokens were there."""
        size = BLOCK_TOKENS * CHARS_PER_TOKEN
        chain: list[int] = []
        last = 0
        for start in range(0, len(text) - size + 1, size):
            last = hash((last, text[start : start + size]))
            chain.append(last)
        hit = 0
        while hit < len(chain) and chain[hit] in self._blocks:
            hit += 1
        for block in reversed(chain):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._max:
            self._blocks.popitem(last=False)
        return hit * BLOCK_TOKENS


class Job:
    """One request until its last token."""

    def __init__(self, connection: "Connection", text: str, tokens: int) -> None:
        self.connection = connection
        self.text = text
        self.prompt_tokens = len(text) // CHARS_PER_TOKEN
        self.tokens = tokens
        self.cached = 0
        self.sent = 0


class Engine:
    """The cache, the queue of prompts, and the counts."""

    def __init__(self, cache_tokens: int, loop: asyncio.AbstractEventLoop) -> None:
        self._cache = Cache(cache_tokens)
        self._loop = loop
        self._queue: deque[Job] = deque()
        self._running: set[Job] = set()
        self._free_at = 0.0
        self._busy = False
        self.requests = self.prompt_tokens = self.cached_tokens = 0
        self.busy_seconds = 0.0

    def add(self, job: Job) -> None:
        """A request came."""
        self.requests += 1
        self._queue.append(job)
        if not self._busy:
            self._free_at = self._loop.time()
            self._begin()

    def _begin(self) -> None:
        self._busy = True
        job = self._queue[0]
        job.cached = min(self._cache.take(job.text), job.prompt_tokens)
        self.prompt_tokens += job.prompt_tokens
        self.cached_tokens += job.cached
        took = seconds(job.prompt_tokens - job.cached)
        self.busy_seconds += took
        # From the planned end of the one before: a late timer does not make the engine slower.
        self._free_at += took
        self._loop.call_at(self._free_at, self._prefilled)

    def _prefilled(self) -> None:
        job = self._queue.popleft()
        self._busy = False
        self._running.add(job)
        job.connection.write(_STREAM)
        self._token(job)
        if self._queue:
            self._begin()

    def _token(self, job: Job) -> None:
        job.sent += 1
        end = '"stop"' if job.sent == job.tokens else "null"
        choice = f'{{"index":0,"delta":{{"content":"{TOKEN}"}},"finish_reason":{end}}}'
        job.connection.event(f'{_HEAD}"choices":[{choice}]}}')
        if job.sent < job.tokens:
            self._loop.call_later(PAUSE_SECONDS, self._token, job)
            return
        self._running.discard(job)
        self._cache.take(f"{job.text}<assistant>{TOKEN * job.tokens}")
        usage = {
            "prompt_tokens": job.prompt_tokens,
            "completion_tokens": job.tokens,
            "total_tokens": job.prompt_tokens + job.tokens,
            "prompt_tokens_details": {"cached_tokens": job.cached},
        }
        job.connection.event(f'{_HEAD}"choices":[],"usage":{json.dumps(usage)}}}')
        job.connection.event("[DONE]")
        job.connection.write(b"0\r\n\r\n")

    def page(self, path: str) -> tuple[str, str]:
        """(content type, body) of a GET; what a router asks an engine for."""
        if path == "/stats":
            names = ("requests", "prompt_tokens", "cached_tokens", "busy_seconds")
            return "application/json", json.dumps({name: getattr(self, name) for name in names})
        if path == "/v1/models":
            return "application/json", '{"data":[{"id":"m","object":"model","owned_by":"vllm"}]}'
        if path == "/metrics":
            waiting = max(0, len(self._queue) - 1)
            running = len(self._running) + len(self._queue) - waiting
            counts = {"running": running, "waiting": waiting}
            lines = (f'vllm:num_requests_{k}{{model_name="m"}} {v}\n' for k, v in counts.items())
            return "text/plain", "".join(lines)
        return "application/json", '{"version":"0.11.0"}'


class Connection(asyncio.Protocol):
    """One connection: requests one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def write(self, data: bytes) -> None:
        """Bytes as they are; nothing when the client is gone."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def event(self, data: str) -> None:
        """One event, a chunk of its own."""
        event = f"data: {data}\n\n".encode()
        self.write(b"%x\r\n%b\r\n" % (len(event), event))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head = self._buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            found = _LENGTH.search(self._buffer, 0, head)
            end = head + 4 + (int(found[1]) if found else 0)
            if len(self._buffer) < end:
                return
            line, body = self._buffer[:head].partition(b"\r\n")[0], self._buffer[head + 4 : end]
            self._buffer = self._buffer[end:]
            self._answer(line.decode().split(), body)

    def _answer(self, line: list[str], body: bytes) -> None:
        if line[0] == "POST" and line[1] == "/v1/chat/completions":
            wanted: dict[str, Any] = json.loads(body)
            text = "".join(f"<{m['role']}>{m['content']}" for m in wanted["messages"])
            self._engine.add(Job(self, text, wanted.get("max_tokens") or wanted["max_completion_tokens"]))
            return
        kind, page = self._engine.page(line[1])
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(page)}\r\n\r\n"
        self.write((head + page).encode())


async def _serve(port: int, cache_tokens: int) -> None:
    loop = asyncio.get_running_loop()
    engine = Engine(cache_tokens, loop)
    server = await loop.create_server(lambda: Connection(engine), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
