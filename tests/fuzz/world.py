"""A gateway between clients and engines that do as a script says, and what must hold whatever it says.

Every request carries a tag of its own in its id and in its body, and an engine puts the tag of the request
that it answers into its answer: so no byte can reach the wrong client, or come in the wrong order, unseen.
"""

import asyncio
import hashlib
import json
import random
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import h11
from cortex_gateway import gateway
from cortex_gateway.gateway import Gateway
from cortex_gateway.protocol import GatewayProtocol
from cortex_gateway.settings import Settings
from cortex_gateway.trace import Tracer
from cortex_gateway.usage_record import RecordWriter, UsageRecord
from cortex_shared.contracts.keys import KeyRecord, hash_key
from cortex_shared.contracts.routes import Endpoint, Route, RoutePolicy, RoutingTable, TimeLimits
from uvicorn.config import Config
from uvicorn.server import ServerState

from tests.fuzz.loop import VirtualLoop, Wire
from tests.fuzz.templates import ANSWERS, HEADS, REQUESTS, TAG

_FIRST = 32
_CLIENTS = 3
_ENGINES = 2
_TAGS = re.compile(rb"T[0-9a-f]{12}")
_SHOWN = re.compile(rb"\r\nx-request-id: ([^\r]*)\r\n")
_REST_SECONDS = 6000.0
_LIMITS = TimeLimits(connect_seconds=1, first_token_seconds=2, idle_seconds=1.5, total_seconds=4)
_SETTINGS = Settings.model_validate(
    {
        "engine_secret": "fuzz",
        "intake": {
            "head_seconds": 2,
            "body_seconds": 2,
            "keep_alive_seconds": 1.5,
            "client_stall_seconds": 2,
            "body_max_bytes": 200_000,
        },
        "upstream": {
            "idle_seconds": 1,
            "event_max_bytes": 100_000,
            "response_max_bytes": 200_000,
            "ping_seconds": 0.75,
        },
        "log": {"access": "off"},
    }
)


class Broken(AssertionError):
    """Something that must hold did not."""


class Recorder:
    """Meter and recorder, but for the disk: each record must begin once and end once."""

    def __init__(self, *_: object) -> None:
        self.hurry = False
        self.recorder = self
        self.open: set[int] = set()
        self.begun = self.ended = 0

    def begin(self, record: UsageRecord) -> int:
        self.begun += 1
        self.open.add(self.begun)
        return self.begun

    def end(self, row: int, record: UsageRecord) -> None:
        if row not in self.open:
            raise Broken("a record ends that is not open")
        self.open.remove(row)
        self.ended += 1
        if not record.outcome or not record.source or not 100 <= record.status < 600:
            raise Broken(f"a record that says nothing: {RecordWriter().ended(record)!r}")


class _Bugs:
    # A module's logger: what the gateway calls a bug of its own must not be.
    def __init__(self) -> None:
        self.found: list[str] = []

    def error(self, what: str, **fields: object) -> None:
        self.found.append(f"{what} {fields}")

    def warning(self, *_: object, **__: object) -> None: ...
    def info(self, *_: object, **__: object) -> None: ...
    def debug(self, *_: object, **__: object) -> None: ...


BUGS = _Bugs()


@contextmanager
def heard() -> Generator[None]:
    """While this lasts, bugs are heard, and gateways are made without disk and a search for versions."""
    modules = [module for name, module in sys.modules.items() if name.startswith("cortex_gateway.")]
    places: list[tuple[ModuleType, str, object]]
    places = [(module, "_log", BUGS) for module in modules if hasattr(module, "_log")]
    places += [(gateway, "Meter", Recorder), (gateway, "Tracer", _tracer)]
    before = [getattr(module, name) for module, name, _ in places]
    for module, name, value in places:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(places, before, strict=True):
            setattr(module, name, value)


async def _app(scope: Any, receive: Any, send: Any) -> None:
    # As the application answers: at once, or when it has the body.
    if scope["path"] == "/reads-a-body":
        while (await receive()).get("more_body"):
            pass
    body = json.dumps(
        {"error": {"message": scope["path"], "type": "t", "param": None, "code": None}}
    ).encode()
    shown = dict(scope["headers"]).get(b"x-request-id", b"none")
    shown = shown if _TAGS.fullmatch(shown) else b"none"
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", shown),
    ]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@cache
def _the_tracer() -> Tracer:
    return Tracer(_SETTINGS.trace, "fuzz")


def _tracer(*_: object) -> Tracer:
    return _the_tracer()


class Client:
    """One client connection: what it is about to send, and what it sent and got."""

    def __init__(self, number: int, wire: Wire) -> None:
        self.number = number
        self.wire = wire
        self.outbox = bytearray()
        self.tags: list[bytes] = []
        self.heads: set[bytes] = set()

    def deliver(self, size: int | None = None) -> None:
        data = bytes(self.outbox if size is None else self.outbox[:size])
        del self.outbox[: len(data)]
        for start in range(0, len(data), 200_000):
            self.wire.feed(data[start : start + 200_000])


class Engine:
    """One engine connection, reading with a parser that is not the gateway's."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.outbox = bytearray()
        self.tag = b"T000000000000"
        self._parser = h11.Connection(h11.SERVER)
        self._read = 0
        self._body = b""
        self._length = -1

    def deliver(self, size: int | None = None) -> None:
        data = bytes(self.outbox if size is None else self.outbox[:size])
        del self.outbox[: len(data)]
        for start in range(0, len(data), 200_000):
            self.wire.feed(data[start : start + 200_000])

    def look(self) -> None:
        """Read what was written: whole requests and nothing else."""
        new = bytes(self.wire.written[self._read :])
        if not new:
            return
        self._read += len(new)
        self._parser.receive_data(new)
        while True:
            event = self._parser.next_event()
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                self._body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._finish()
            elif event is h11.NEED_DATA:
                if self._parser.their_state is not h11.IDLE:
                    raise Broken("an engine got part of a request")
                return
            else:
                raise Broken(f"an engine got {event!r}")

    def _begin(self, request: h11.Request) -> None:
        names = [name for name, _ in request.headers]
        for name in (b"host", b"content-length", b"content-type", b"authorization", b"x-request-id"):
            if names.count(name) != 1:
                raise Broken(f"{name!r} is there {names.count(name)} times")
        if b"transfer-encoding" in names or b"expect" in names or request.method != b"POST":
            raise Broken("a head that the gateway does not write")
        headers = dict(request.headers)
        if b"sk-fuzz" in b"".join(headers.values()):
            raise Broken("an engine got a client's key")
        self._length = int(headers[b"content-length"])
        self._body = b""

    def _finish(self) -> None:
        if self._length != len(self._body):
            raise Broken("a body is not as long as was told")
        # Text that nobody wanted may be no UTF-8: that is the engine's to refuse.
        if json.loads(self._body.decode(errors="replace")).get("model") not in ("m", "theirs"):
            raise Broken("an engine got another model's request")
        found = _TAGS.search(self._body)
        self.tag = found[0] if found else b"T000000000000"
        self.outbox.clear()  # nobody could tell what was meant for the request before from this one's
        self._parser.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        self._parser.send(h11.EndOfMessage())
        self._parser.start_next_cycle()


class World:
    """One script's run."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        BUGS.found.clear()
        self.gateway = Gateway(_SETTINGS, "fuzz", Path("/nowhere"), loop)
        self.gateway.table._clock.chance = random.Random(1)  # pyright: ignore[reportPrivateUsage] # one course
        self.recorder = cast("Recorder", self.gateway.meter)
        self.config = _config()
        self.state = ServerState()
        self.now: dict[int, Client] = {}
        self.clients: list[Client] = []
        self.engines: list[Engine] = []
        self.dials: list[asyncio.Future[Any]] = []
        self.policy = 0
        self.errors: list[str] = []
        loop.connect = self._dialled
        loop.set_exception_handler(self._failed)
        self.routes(0)
        self.keys(known=True)

    def _failed(self, _: object, context: dict[str, Any]) -> None:
        self.errors.append(repr(context.get("exception") or context["message"]))

    # What a script can do.

    def routes(self, how: int) -> None:
        """Another routing table."""
        count = (_ENGINES, 1, 0, _ENGINES)[how % 4]
        route = Route(
            name="m",
            aliases=["alias"],
            model_id=1,
            task="chat",
            engine="vllm",
            created=1,
            state="running",
            policy=RoutePolicy(limits=_LIMITS, concurrency=how & 4, queue_max=2, queue_seconds=2),
            endpoints=[
                Endpoint(
                    instance=f"i{n}", url=f"http://127.0.0.{n + 1}:1", model="theirs" if how & 8 else None
                )
                for n in range(count)
            ],
        )
        routes = [] if how & 16 else [route]
        self.gateway.table.replace(RoutingTable(term=1, version=1, written_at=_WHEN, routes=routes))

    def keys(self, *, known: bool) -> None:
        """The key is known, or not."""
        self.gateway.keys.replace([KeyRecord(id=1, name="k", hash=hash_key("sk-fuzz"))] if known else [])

    def client(self, number: int) -> Client:
        """The client of that number, with a new connection if it has none."""
        number %= _CLIENTS
        client = self.now.get(number)
        if client is None or client.wire.closing:
            made = GatewayProtocol(self.gateway, self.config, self.state, {}, self.loop)
            client = self.now[number] = Client(number, Wire(self.loop, made))
            self.clients.append(client)
        return client

    def ask(self, client: Client, template: int) -> None:
        """The client is about to send this."""
        # The last numbers are for those that came later, so that inputs from before mean what they meant.
        template = template % _FIRST if template < 240 else _FIRST + template % (len(REQUESTS) - _FIRST)
        text = REQUESTS[template]
        if TAG in text:
            name = f"{len(self.clients)} {len(client.tags)} {client.number}".encode()
            tag = b"T" + hashlib.sha256(name).hexdigest()[:12].encode()
            client.tags.append(tag)
            if template in HEADS:
                client.heads.add(tag)
            text = text.replace(TAG, tag)
        client.outbox += text

    def engine(self, number: int) -> Engine | None:
        """One of the engine connections that are open; the youngest is number 0."""
        alive = [each for each in self.engines if not each.wire.closing]
        return alive[-1 - number % len(alive)] if alive else None

    def answer(self, engine: Engine, template: int) -> None:
        """The engine is about to send this."""
        engine.outbox += ANSWERS[template % len(ANSWERS)].replace(TAG, engine.tag)

    def drain(self) -> None:
        """The gateway is told to stop."""
        if not self.gateway.draining:
            self.gateway.drain(5)
            for client in self.clients:
                if not client.wire.closed:
                    cast("GatewayProtocol", client.wire.first).shutdown()

    def _dialled(self, factory: Callable[[], asyncio.Protocol]) -> asyncio.Future[Any]:
        waits: asyncio.Future[Any] = self.loop.create_future()
        policy = self.policy
        if policy == 0:
            self._connect(waits, factory)
        elif policy == 1:
            waits.set_exception(ConnectionRefusedError())
        else:
            self.dials.append(waits)
            waits.add_done_callback(lambda _: None)
            self.loop.call_later(policy * 0.4, partial(self._connect, waits, factory))
        return waits

    def _connect(self, waits: asyncio.Future[Any], factory: Callable[[], asyncio.Protocol]) -> None:
        if not waits.done():
            made = factory()
            wire = Wire(self.loop, made)
            self.engines.append(Engine(wire))
            waits.set_result((wire, made))

    # What must hold.

    async def rest(self) -> None:
        """After each step."""
        await self.loop.settle()
        for engine in self.engines:
            engine.look()
        if BUGS.found or self.errors:
            raise Broken(f"{BUGS.found} {self.errors}")

    async def end(self) -> None:
        """Nobody says anything any more: the time limits must end everything."""
        for client in self.clients:
            if not client.wire.closed:
                client.wire.take()
        waited = 0.0
        while waited < _REST_SECONDS:
            self.loop.now += 1.0
            waited += 1.0
            await self.rest()
            if not self.gateway.sweeper._timed:  # pyright: ignore[reportPrivateUsage] # at rest
                break
        problems = self._left_over()
        if problems:
            raise Broken(", ".join(problems))
        for client in self.clients:
            self._read(client)

    def _left_over(self) -> list[str]:
        found: list[str] = []
        if self.recorder.open or self.recorder.begun != self.recorder.ended:
            found.append(f"records are open: {self.recorder.open}")
        if self.gateway.open_requests:
            found.append("requests are open")
        for route in self.gateway.table.routes():
            if route.stats.in_flight or route.stats.waiting or route.waiting:
                found.append("a route counts requests that are over")
            for endpoint in route.endpoints:
                if endpoint.outstanding or endpoint.probing:
                    found.append("a slot is not released")
                if endpoint.idle:
                    found.append("a connection is idle for ever")
        if any(not client.wire.closed for client in self.clients):
            found.append("a client's connection is open for ever")
        if any(not engine.wire.closed for engine in self.engines):
            found.append("an engine's connection is open for ever")
        if self.gateway.stats.connections:
            found.append("connections are miscounted")
        return found

    def _read(self, client: Client) -> None:
        # With h11 as a strict client: every byte belongs to an answer, and each to the request it should.
        left, last = bytes(client.wire.written), -1
        while left:
            shown = _SHOWN.search(left)
            if shown is None:
                if left == b"HTTP/1.1 100 Continue\r\n\r\n" or (
                    client.wire.aborted and b"\r\n\r\n" not in left
                ):
                    return
                raise Broken(f"an answer without an id: {left[:200]!r}")
            tag = shown[1]
            if tag in client.tags:
                at = client.tags.index(tag)
                if at < last:
                    raise Broken("answers are out of order")
                last = at
            elif _TAGS.fullmatch(tag):
                if any(tag in other.tags for other in self.clients):
                    raise Broken("a client got another's answer")
            elif client.heads:
                return  # it cannot be told whether this one has a body
            left = self._read_one(client, left, tag)

    def _read_one(self, client: Client, data: bytes, tag: bytes) -> bytes:
        parser = h11.Connection(h11.CLIENT)
        method = "HEAD" if tag in client.heads else "GET"
        parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(data)
        parser.receive_data(b"")
        body, status, kind = b"", 0, b""
        try:
            while True:
                event = parser.next_event()
                if isinstance(event, h11.Response):
                    status, kind = event.status_code, dict(event.headers).get(b"content-type", b"")
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                elif not isinstance(event, h11.InformationalResponse):
                    raise Broken(f"a client got {event!r}")
        except h11.RemoteProtocolError as error:
            if "peer closed connection" in str(error) and client.wire.aborted:
                return b""
            raise Broken(f"a client cannot read its answer: {error}") from error
        for found in _TAGS.findall(body):
            others = any(found in each.tags for each in self.clients if each is not client)
            if others or (found in client.tags and tag in client.tags and found != tag):
                raise Broken("an answer has another's bytes")
        if status >= 400 and method != "HEAD" and kind == b"application/json":
            told: Any = json.loads(body)["error"]
            if not isinstance(told["message"], str) or not isinstance(told["type"], str):
                raise Broken("an error without its shape")
        return parser.trailing_data[0]


_WHEN = datetime(2026, 1, 1, tzinfo=UTC)
_CONFIG: list[Config] = []


def _config() -> Config:
    if not _CONFIG:
        made = Config(_app, lifespan="off", log_config=None, access_log=False, ws="none", server_header=False)
        made.load()
        _CONFIG.append(made)
    return _CONFIG[0]


async def with_pool(world: World, script: Callable[[World], Any]) -> None:
    """Run a script while the gateway's pool runs."""
    pool = world.loop.create_task(world.gateway.dialler.run())
    try:
        await world.loop.settle()
        await script(world)
        await world.end()
    finally:
        pool.cancel()
        with suppress(asyncio.CancelledError):
            await pool
        await world.loop.settle()
