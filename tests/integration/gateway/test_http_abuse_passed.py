"""What reaches an engine: exactly the requests that were accepted, whatever clients write into theirs."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import pytest
from cortex_shared.engine_keys import engine_key

from tests.fakes.raw_server import listening
from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.harness import KEY, SECRET, Stand, chat, request, route, standing

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Engine:
    """Reads with a parser that is not the gateway's, and keeps everything."""

    def __init__(self) -> None:
        self.raw = b""
        self.heads: list[list[tuple[bytes, bytes]]] = []
        self.targets: list[bytes] = []
        self.bodies: list[bytes] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = h11.Connection(h11.SERVER)
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65_536)
                self.raw += data
                parser.receive_data(data)
            elif isinstance(event, h11.Request):
                self.heads.append(list(event.headers))
                self.targets.append(event.target)
                self.bodies.append(b"")
            elif isinstance(event, h11.Data):
                self.bodies[-1] += event.data
            elif isinstance(event, h11.EndOfMessage):
                parser.send(h11.Response(status_code=200, headers=[("content-length", "2")]))
                parser.send(h11.Data(data=b"{}"))
                parser.send(h11.EndOfMessage())
                parser.start_next_cycle()
                writer.write(_ANSWER)
            else:
                return


@asynccontextmanager
async def recording(journal: Path, **fields: Any) -> AsyncGenerator[tuple[Engine, Stand]]:
    """A gateway before such an engine."""
    engine = Engine()
    async with listening(engine.handle) as url, standing(journal, route(url, **fields)) as stand:
        yield engine, stand


def of(headers: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for found, value in headers if found == name]


async def test_values_pass_as_they_are_and_make_no_second_header(journal: Path) -> None:
    values = [
        b"a\tb",
        b"\xc3\xa9 \xff",
        b"a: b",
        b'"quoted, \\" too"',
        b"%0d%0ax-evil: 1",
        b"\\r\\nx-evil: 1",
    ]
    lines = b"".join(b"x-value: %b\r\n" % value for value in values)
    async with recording(journal) as (engine, stand):
        raw = await stand.connect()
        whole = request(chat()).replace(b"content-type", lines + b"content-type", 1)
        raw.send(whole * 2)
        for _ in range(2):
            assert (await raw.answer()).status == 200
        assert len(engine.heads) == 2
        for headers in engine.heads:
            assert of(headers, b"x-value") == values
            assert not of(headers, b"x-evil")
            assert len(of(headers, b"content-length")) == len(of(headers, b"host")) == 1


async def test_hop_by_hop_headers_end_here(journal: Path) -> None:
    extra = (
        b"connection: keep-alive, X-One ,x-two\r\nx-one: 1\r\nconnection: x-three,content-length,host\r\n"
        b"x-two: 2\r\nX-Three: 3\r\nkeep-alive: timeout=1\r\nte: trailers\r\ntrailer: x-t\r\n"
        b"proxy-authorization: Basic x\r\nproxy-connection: close\r\nx-stays: 4\r\ncookie: a=b\r\n"
        b"content-type: text/evil\r\nx-request-id: evil\r\nforwarded: for=1.2.3.4\r\n"
        b"x-forwarded-for: 1.2.3.4\r\n"
        b"x-api-key: sk-other\r\napi-key: sk-other\r\n"
    )
    async with recording(journal) as (engine, stand):
        raw = await stand.connect()
        raw.send(request(chat()).replace(b"\r\n", b"\r\n" + extra, 1))
        assert (await raw.answer()).status == 200
        headers = engine.heads[0]
        assert sorted(name for name, _ in headers) == sorted(
            (
                b"host",
                b"authorization",
                b"x-stays",
                b"content-type",
                b"x-request-id",
                b"content-length",
            )
        )
        assert of(headers, b"authorization") == [f"Bearer {engine_key(SECRET, 'i0')}".encode()]
        assert of(headers, b"content-type") == [b"application/json"]
        assert of(headers, b"x-request-id")[0].startswith(b"req_")
        assert KEY.encode() not in engine.raw
        assert b"sk-other" not in engine.raw


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("model", [None, "another-name", 'n"\\\r\n\N{SNOWMAN}'])
async def test_the_length_that_an_engine_is_told_is_that_of_the_edited_body(
    journal: Path, stream: bool, chunked: bool, model: str | None
) -> None:
    body = json.dumps(chat("é" * 50, stream=stream, nested={"model": "m"}), ensure_ascii=False).encode()
    async with recording(journal, model=model) as (engine, stand):
        raw = await stand.connect()
        for _ in range(2):
            if chunked:
                pieces = b"".join(
                    b"%x\r\n%b\r\n" % (len(body[n : n + 9]), body[n : n + 9]) for n in range(0, len(body), 9)
                )
                head = request(b"", content_length="", transfer_encoding="chunked")
                raw.send(head + pieces + b"0\r\nx-length: 3\r\n\r\n")
            else:
                raw.send(request(body))
            await raw.answer()
        assert len(engine.bodies) == 2
        for headers, got in zip(engine.heads, engine.bodies, strict=True):
            assert of(headers, b"content-length") == [b"%d" % len(got)]
            assert not of(headers, b"transfer-encoding")
            wanted: dict[str, Any] = {**json.loads(body), "model": model or "m"}
            if stream:
                wanted["stream_options"] = {"include_usage": True}
            assert json.loads(got) == wanted
        assert engine.raw.count(b"HTTP/1.1\r\n") == 2


async def test_a_request_inside_a_body_stays_a_body(journal: Path) -> None:
    inner = request(chat("evil"), authorization="Bearer no").decode()
    async with recording(journal) as (engine, stand):
        raw = await stand.connect()
        raw.send(request({**chat(), "smuggled": inner}) + request(chat()))
        for _ in range(2):
            assert (await raw.answer()).status == 200
        assert len(engine.heads) == 2
        assert json.loads(engine.bodies[0])["smuggled"] == inner


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/v1/chat/completions?a=b&c", 200),
        ("/v1/chat/completions?", 200),
        ("/v1/chat/completions#part", 200),
        ("/v1/chat%2fcompletions", 200),
        ("/v1/chat/%63ompletions", 200),
        ("http://elsewhere/v1/chat/completions", 200),
        ("https://a:b@elsewhere:1/v1/chat/completions?x", 200),
        ("/v1/chat/completions/", 404),
        ("//v1/chat/completions", 404),
        ("/v1//chat/completions", 404),
        ("/v1/./chat/completions", 404),
        ("/v1/../v1/chat/completions", 404),
        ("/v1/chat/completions/..%2f..%2fadmin", 404),
        ("/V1/chat/completions", 404),
        ("/v1/chat/completions;a=b", 404),
        ("/v1/chat/completions%00", 404),
        ("/v1/chat/completions%20", 404),
        ("/v1/chat/completions%0d%0ax-evil:%201", 404),
        ("/v1/chat%252fcompletions", 404),
        ("/%", 404),
        ("/%zz%f", 404),
        ("/%ff%fe", 404),
        ("/?http://x/v1/chat/completions", 404),
        ("http://elsewhere", 404),
        ("/" + "a" * 20_000, 404),
    ],
)
async def test_a_target_is_one_path_or_none(journal: Path, target: str, status: int) -> None:
    async with recording(journal) as (engine, stand):
        raw = await stand.connect()
        for _ in range(2):
            raw.send(request(chat(), target))
            answer = await raw.answer()
            assert answer.status == status
            if status != 200:
                assert answer.error["code"] == "unknown_url"
            assert "x-evil" not in answer.headers
            assert answer.headers["x-request-id"]
        # An engine never sees a spelling of the client's.
        assert engine.targets == ([b"/v1/chat/completions"] * 2 if status == 200 else [])


async def test_two_clients_on_one_engine_connection_get_their_own(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        for number in range(6):
            engine.replies.append(Reply(body=b'{"n":%d}' % number))
            assert (await stand.post(chat())).json == {"n": number}
        assert engine.connections == 1
