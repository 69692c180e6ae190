"""A gateway in the test's own process, with routes and keys put in by hand, and raw HTTP to speak with it."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
from cortex_gateway.gateway import Gateway
from cortex_gateway.main import build, run_gateway
from cortex_gateway.meter import Record
from cortex_gateway.settings import Settings
from cortex_shared.contracts.keys import KeyRecord, hash_key
from cortex_shared.contracts.routes import Endpoint, Route, RoutePolicy, RoutingTable, TimeLimits

from tests.fakes.upstream import Upstream

KEY = "sk-cortex-test"
OTHER_KEY = "sk-cortex-other"
SECRET = "fleet secret"


def table(*routes: Route, version: int = 1) -> RoutingTable:
    """A routing table."""
    return RoutingTable(term=1, version=version, written_at=datetime.now(UTC), routes=list(routes))


def route(
    *engines: Upstream | str,
    name: str = "m",
    aliases: Sequence[str] = (),
    limits: TimeLimits | None = None,
    model: str | None = None,
    state: str = "running",
    key: str | None = None,
    engine: str = "vllm",
    context_length: int | None = None,
    **policy: Any,
) -> Route:
    """A route to these engines."""
    return Route(
        name=name,
        aliases=list(aliases),
        model_id=1,
        task="chat",
        engine=engine,
        context_length=context_length,
        created=1,
        state=state,
        policy=RoutePolicy(limits=limits or TimeLimits(), **policy),
        endpoints=[
            Endpoint(
                instance=f"i{number}",
                url=engine if isinstance(engine, str) else engine.url,
                model=model,
                key=key,
            )
            for number, engine in enumerate(engines)
        ],
    )


def key_record(key: str = KEY, **fields: Any) -> KeyRecord:
    """A key as the ring holds it."""
    return KeyRecord.model_validate({"id": 1, "name": "test", "hash": hash_key(key), **fields})


class Stand:
    """A running gateway."""

    def __init__(self, gateway: Gateway, port: int, journal: Path) -> None:
        self.gateway = gateway
        self.port = port
        self._journal = journal
        self._raws: list[Raw] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def records(self) -> list[Record]:
        """What was journalled so far, in order."""
        lines: list[bytes] = []
        for path in sorted(self._journal.rglob("*.usage")):
            lines += path.read_bytes().rstrip(b"\0").splitlines()
        return [msgspec.json.decode(line, type=Record) for line in lines]

    async def one_record(self, seconds: float = 5) -> Record:
        """The only record, as soon as it is there."""
        await until(lambda: len(self.records()) == 1, seconds)
        return self.records()[0]

    async def connect(self) -> "Raw":
        """A raw connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        raw = Raw(reader, writer)
        self._raws.append(raw)
        return raw

    async def close(self) -> None:
        """Close all raw connections."""
        for raw in self._raws:
            raw.abort()
        await asyncio.sleep(0.01)

    async def post(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> "Answer":
        """One request on a connection of its own."""
        raw = await self.connect()
        try:
            raw.send(request(body, path, **headers))
            return await raw.answer()
        finally:
            raw.close()

    async def get(self, path: str, method: str = "GET", key: str | None = KEY) -> "Answer":
        """GET or the like."""
        raw = await self.connect()
        try:
            auth = f"authorization: Bearer {key}\r\n" if key else ""
            raw.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{auth}\r\n".encode())
            return await raw.answer(head_only=method == "HEAD")
        finally:
            raw.close()


class Answer:
    """An answer, dechunked."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.cut = cut

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error = cast("dict[str, Any]", self.json["error"])
        assert set(error) == {"message", "type", "param", "code"}
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        return error

    @property
    def anthropic_error(self) -> dict[str, Any]:
        """The error of an answer in Anthropic's shape."""
        document = cast("dict[str, Any]", self.json)
        assert set(document) == {"type", "error", "request_id"}
        assert document["type"] == "error"
        assert set(document["error"]) == {"type", "message"}
        assert document["request_id"] == self.headers["request-id"] == self.headers["x-request-id"]
        assert self.headers["content-type"] == "application/json"
        return document["error"]

    @property
    def typed(self) -> list[tuple[str, dict[str, Any]]]:
        """The named events of a stream."""
        found: list[tuple[str, dict[str, Any]]] = []
        for block in self.body.decode().split("\n\n"):
            lines = dict(
                line.split(": ", 1) for line in block.split("\n") if line.startswith(("event", "data"))
            )
            if lines:
                found.append((lines["event"], json.loads(lines["data"])))
        return found

    @property
    def events(self) -> list[Any]:
        found: list[Any] = []
        for block in self.body.decode().split("\n\n"):
            if block.startswith("data: "):
                data = block[6:]
                found.append(data if data == "[DONE]" else json.loads(data))
        return found

    @property
    def text(self) -> str:
        events = [cast("dict[str, Any]", e) for e in self.events if isinstance(e, dict)]
        return "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e.get("choices"))


class Raw:
    """A connection on which bytes are written as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()

    def pause(self) -> None:
        """Take nothing any more."""
        cast("asyncio.Transport", self.writer.transport).pause_reading()

    def resume(self) -> None:
        """Take again."""
        cast("asyncio.Transport", self.writer.transport).resume_reading()

    async def line(self, seconds: float = 10) -> bytes:
        async with asyncio.timeout(seconds):
            return await self.reader.readline()

    async def answer(self, *, head_only: bool = False, seconds: float = 20) -> Answer:
        """The next answer; `cut` if it did not end as HTTP wants."""
        async with asyncio.timeout(seconds):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status, headers = parse(head)
            if head_only or status in (100, 204):
                return Answer(status, headers, b"")
            if "content-length" in headers:
                return Answer(status, headers, await self.reader.readexactly(int(headers["content-length"])))
            if "transfer-encoding" not in headers:
                return Answer(status, headers, await self.reader.read())
            body = bytearray()
            try:
                while True:
                    size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
                    data = await self.reader.readexactly(size + 2)
                    if size == 0:
                        return Answer(status, headers, bytes(body))
                    body += data[:-2]
            except (asyncio.IncompleteReadError, ConnectionError):
                return Answer(status, headers, bytes(body), cut=True)

    async def closed(self, seconds: float = 10) -> bool:
        """Whether the other side closes, saying nothing more."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


def parse(head: bytes) -> tuple[int, dict[str, str]]:
    """(status, headers) of an answer's head."""
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value for name, _, value in pairs}


def chat(content: str = "hi", **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}


def request(body: Any, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    """A POST with a length; a header of the empty string is left out."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {
        "host": "gateway",
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "content-length": str(len(data)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value]
    return f"POST {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + data


async def until(condition: Any, seconds: float = 10) -> None:
    """Poll until true; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def standing(
    journal: Path, *routes: Route, keys: Sequence[KeyRecord] | None = None, **settings: Any
) -> AsyncGenerator[Stand]:
    """A gateway that serves these routes; `settings` are parts of Settings as dictionaries."""
    made = Settings.model_validate(
        {
            "engine_secret": SECRET,
            "meter": {"journal_dir": journal},
            "http": {"drain_seconds": 1},
            **settings,
        }
    )
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        gateway = build(made, "gateway-test")
        gateway.table.replace(table(*routes))
        gateway.keys.replace([key_record()] if keys is None else keys)
        async with anyio.create_task_group() as group:
            group.start_soon(partial(run_gateway, made, gateway, (), [listening]))
            stand = Stand(gateway, port, journal)
            await until(lambda: _accepts(port))
            try:
                yield stand
            finally:
                await stand.close()
            group.cancel_scope.cancel()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
