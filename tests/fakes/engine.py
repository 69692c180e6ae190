"""A fake engine: an OpenAI-like server with llama-server's argv, whose behaviour is set by FAKE_* variables.

Run by path; standard library only. It takes --host, --port, -m/--model and -a/--alias, and passes over
other flags. Knobs, by environment:

    FAKE_BIND_SECONDS, FAKE_LOAD_SECONDS   before it listens; then /health says 503 for so long
    FAKE_FIRST_TOKEN_SECONDS, FAKE_TOKENS_PER_SECOND   pace of answers (default 0, 100; 0: at once)
    FAKE_EXIT_SECONDS, FAKE_EXIT_STATUS    end by itself
    FAKE_IGNORE_SIGTERM=1                  only SIGKILL ends it
    FAKE_CHILDREN, FAKE_CHILDREN_SETSID=1  so many children that ignore SIGTERM; in sessions of their own
    FAKE_PRINT, FAKE_PRINT_BYTES           a line when it starts to load; then so many bytes of lines
    FAKE_UNHEALTHY_FILE, FAKE_STUCK_FILE   while there: /health says 503; requests get no token
    LLAMA_API_KEY or FAKE_API_KEY          demanded of every request but /health

Answers count tokens: token k of an answer is " tk"; without `ignore_eos` an answer ends after 8 tokens.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from typing import Any

ANSWER_TOKENS = 8
MAX_TOKENS = 100_000


class Knobs:
    """The environment, read once."""

    def __init__(self) -> None:
        env = os.environ
        self.bind_seconds = float(env.get("FAKE_BIND_SECONDS", "0"))
        self.load_seconds = float(env.get("FAKE_LOAD_SECONDS", "0"))
        self.first_token_seconds = float(env.get("FAKE_FIRST_TOKEN_SECONDS", "0"))
        self.tokens_per_second = float(env.get("FAKE_TOKENS_PER_SECOND", "100"))
        self.exit_seconds = float(env.get("FAKE_EXIT_SECONDS", "0"))
        self.exits = "FAKE_EXIT_SECONDS" in env
        self.exit_status = int(env.get("FAKE_EXIT_STATUS", "0"))
        self.ignore_sigterm = env.get("FAKE_IGNORE_SIGTERM") == "1"
        self.children = int(env.get("FAKE_CHILDREN", "0"))
        self.children_setsid = env.get("FAKE_CHILDREN_SETSID") == "1"
        self.print = env.get("FAKE_PRINT")
        self.print_bytes = int(env.get("FAKE_PRINT_BYTES", "0"))
        self.unhealthy_file = env.get("FAKE_UNHEALTHY_FILE", "")
        self.stuck_file = env.get("FAKE_STUCK_FILE", "")
        self.api_key = env.get("FAKE_API_KEY") or env.get("LLAMA_API_KEY")


class Engine:
    """Counters and routes."""

    def __init__(self, knobs: Knobs, model: str) -> None:
        self.knobs = knobs
        self.model = model
        self.loaded = False
        self.running = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, with as many requests as it likes."""
        with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
            while await self._request(reader, writer):
                pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        body = await reader.readexactly(int(headers.get("content-length") or 0))
        path = target.partition("?")[0]
        keep = headers.get("connection", "").lower() != "close"
        if path == "/health":
            sick = bool(self.knobs.unhealthy_file) and os.path.exists(self.knobs.unhealthy_file)
            ok = self.loaded and not sick
            _send(writer, 200 if ok else 503, {"status": "ok"} if ok else _error("Loading model", 503))
        elif self.knobs.api_key and headers.get("authorization") != f"Bearer {self.knobs.api_key}":
            _send(writer, 401, _error("Invalid API Key", 401))
        elif not self.loaded:
            _send(writer, 503, _error("Loading model", 503))
        elif method == "GET":
            self._get(writer, path)
        else:
            await self._post(writer, path, body)
        await writer.drain()
        return keep

    def _get(self, writer: asyncio.StreamWriter, path: str) -> None:
        if path == "/v1/models":
            _send(writer, 200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})
        elif path == "/metrics":
            text = (
                "# TYPE llamacpp:requests_processing gauge\n"
                f"llamacpp:requests_processing {self.running}\n"
                "llamacpp:requests_deferred 0\n"
                f"llamacpp:prompt_tokens_total {self.prompt_tokens}\n"
                f"llamacpp:tokens_predicted_total {self.generation_tokens}\n"
            )
            _send_raw(writer, 200, "text/plain; version=0.0.4", text.encode())
        else:
            _send(writer, 404, _error("File Not Found", 404))

    async def _post(self, writer: asyncio.StreamWriter, path: str, body: bytes) -> None:
        try:
            request = json.loads(body)
        except ValueError:
            _send(writer, 400, _error("not JSON", 400))
            return
        if path == "/v1/embeddings":
            asked: Any = request.get("input")
            count = len(asked) if isinstance(asked, list) else 1  # pyright: ignore[reportUnknownArgumentType]
            data = [{"object": "embedding", "index": i, "embedding": [0.5] * 8} for i in range(count)]
            usage = {"prompt_tokens": count, "total_tokens": count}
            _send(writer, 200, {"object": "list", "model": self.model, "data": data, "usage": usage})
        elif path in ("/v1/chat/completions", "/v1/completions"):
            self.running += 1
            try:
                await self._complete(writer, request, chat=path.startswith("/v1/chat"))
            finally:
                self.running -= 1
        else:
            _send(writer, 404, _error("File Not Found", 404))

    async def _complete(self, writer: asyncio.StreamWriter, request: dict[str, Any], *, chat: bool) -> None:
        count = int(request.get("max_tokens") or request.get("max_completion_tokens") or MAX_TOKENS)
        ends = not request.get("ignore_eos") and count >= ANSWER_TOKENS
        count = ANSWER_TOKENS if ends else min(count, MAX_TOKENS)
        finish = "stop" if ends else "length"
        prompt = max(1, len(json.dumps(request.get("messages") or request.get("prompt") or "").split()))
        self.prompt_tokens += prompt
        stream = bool(request.get("stream"))
        base = {
            "id": f"fake-{time.monotonic_ns():x}",
            "object": ("chat.completion" if chat else "text_completion")
            + (".chunk" if stream and chat else ""),
            "created": int(time.time()),
            "model": self.model,
        }
        if stream:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
        words: list[str] = []
        for number in range(count):
            await self._pace(number)
            words.append(f" t{number}")
            self.generation_tokens += 1
            if stream:
                delta: dict[str, Any] = {"content": words[-1]}
                if number == 0:
                    delta["role"] = "assistant"
                choice = {"delta": delta} if chat else {"text": words[-1]}
                _event(writer, {**base, "choices": [{"index": 0, "finish_reason": None, **choice}]})
                await writer.drain()
        usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}
        text = "".join(words)
        if not stream:
            answer = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            _send(
                writer,
                200,
                {**base, "choices": [{"index": 0, "finish_reason": finish, **answer}], "usage": usage},
            )
            return
        last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        _event(writer, {**base, "choices": [{"index": 0, "finish_reason": finish, **last}]})
        if (request.get("stream_options") or {}).get("include_usage"):
            _event(writer, {**base, "choices": [], "usage": usage})
        _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    async def _pace(self, number: int) -> None:
        while self.knobs.stuck_file and os.path.exists(self.knobs.stuck_file):
            await asyncio.sleep(0.05)
        if number == 0:
            await asyncio.sleep(self.knobs.first_token_seconds)
        elif self.knobs.tokens_per_second:
            await asyncio.sleep(1 / self.knobs.tokens_per_second)
        elif number % 64 == 0:
            await asyncio.sleep(0)


def _error(message: str, status: int) -> dict[str, Any]:
    return {
        "error": {
            "code": status,
            "message": message,
            "type": "unavailable_error" if status == 503 else "error",
        }
    }


def _send(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
    _send_raw(writer, status, "application/json", json.dumps(body).encode())


def _send_raw(writer: asyncio.StreamWriter, status: int, content_type: str, body: bytes) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def _event(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    _chunk(writer, b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _arguments(words: list[str]) -> dict[str, str]:
    names = {"-m": "model", "--model": "model", "-a": "alias", "--alias": "alias"}
    names |= {"--host": "host", "--port": "port"}
    found: dict[str, str] = {}
    for flag, value in itertools.pairwise(words):
        if flag in names:
            found[names[flag]] = value
    return found


def _fork_children(count: int, *, own_session: bool) -> None:
    for _ in range(count):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if own_session:
                os.setsid()
            while True:
                signal.pause()


async def _main() -> None:
    knobs, told = Knobs(), _arguments(sys.argv[1:])
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    if not knobs.ignore_sigterm:
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    if knobs.exits:
        loop.call_later(knobs.exit_seconds, os._exit, knobs.exit_status)
    await asyncio.sleep(knobs.bind_seconds)
    engine = Engine(knobs, told.get("alias") or told.get("model") or "fake")
    server = await asyncio.start_server(
        engine.serve, told.get("host", "127.0.0.1"), int(told.get("port", "9931"))
    )
    if knobs.print is not None:
        print(knobs.print, flush=True)
    line = "x" * 99 + "\n"
    for _ in range(knobs.print_bytes // len(line)):
        sys.stdout.write(line)
    sys.stdout.flush()
    await asyncio.sleep(knobs.load_seconds)
    engine.loaded = True
    print("fake engine: ready", flush=True)
    await stop.wait()
    server.close()
    # At once, whatever is still being answered: like llama-server.
    os._exit(0)


if __name__ == "__main__":
    started = Knobs()
    if started.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _fork_children(started.children, own_session=started.children_setsid)
    asyncio.run(_main())
