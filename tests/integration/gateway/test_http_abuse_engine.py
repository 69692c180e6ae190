"""Engines whose HTTP is not what it should be: one meaning, or an error."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from cortex_gateway.relay import StreamRelay
from cortex_gateway.upstream import Connection

from tests.fakes.raw_server import listening
from tests.fakes.upstream import DONE, FINISH, ROLE, Reply, Upstream, chunk, event
from tests.integration.gateway.harness import Answer, Stand, chat, request, route, standing, until

_OK = b"HTTP/1.1 200 OK\r\n"
_JSON = b"content-type: application/json\r\n"
_SSE = b"content-type: text/event-stream\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"
_LAST = b"0\r\n\r\n"
_BODY = b'{"choices":[]}'
_LENGTH = b"content-length: %d\r\n" % len(_BODY)
_EVENTS = [ROLE, event("t0 "), event("t1 "), FINISH, DONE]
_STREAM = _OK + _SSE + _CHUNKED + b"\r\n"

type Standing = tuple[Upstream, Stand]


@asynccontextmanager
async def speaking(journal: Path, *pieces: bytes, close: bool = False) -> AsyncGenerator[Standing]:
    """A gateway whose only engine says just this to each request."""
    reply = Reply(raw=list(pieces), close=close)
    async with Upstream(reply) as engine, standing(journal, route(engine)) as stand:
        yield engine, stand


async def still_serves(engine: Upstream, stand: Stand) -> None:
    """The next request gets its own answer, and nothing is left open."""
    engine.reply = Reply()
    for stream in (False, True):
        answer = await stand.post(chat(stream=stream))
        assert answer.status == 200
        assert b"t0 t1 t2 " in answer.body or answer.text == "t0 t1 t2 "
    assert stand.gateway.open_requests == 0
    assert all(e.outstanding == 0 for e in stand.gateway.table.routes()[0].endpoints)
    assert all(record.outcome for record in stand.records())


_BROKEN_HEADS = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\n" + _LENGTH + b"\r\n" + _BODY,
    "HTTP/1.1 in small letters": b"http/1.1 200 OK\r\n" + _LENGTH + b"\r\n" + _BODY,
    "version 1.x": b"HTTP/1.x 200 OK\r\n" + _LENGTH + b"\r\n" + _BODY,
    "no status": b"HTTP/1.1 OK\r\n" + _LENGTH + b"\r\n" + _BODY,
    "status of two digits": b"HTTP/1.1 20 OK\r\n" + _LENGTH + b"\r\n" + _BODY,
    "status of four digits": b"HTTP/1.1 2000 OK\r\n" + _LENGTH + b"\r\n" + _BODY,
    "signed status": b"HTTP/1.1 +20 OK\r\n" + _LENGTH + b"\r\n" + _BODY,
    "underscored status": b"HTTP/1.1 2_0 OK\r\n" + _LENGTH + b"\r\n" + _BODY,
    "status 099": b"HTTP/1.1 099 OK\r\n" + _LENGTH + b"\r\n" + _BODY,
    "status 700": b"HTTP/1.1 700 OK\r\n" + _LENGTH + b"\r\n" + _BODY,
    "an upgrade that nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n" + _BODY,
    "folded header": _OK + b"x: a\r\n b\r\n" + _LENGTH + b"\r\n" + _BODY,
    "header without colon": _OK + b"nonsense\r\n" + _LENGTH + b"\r\n" + _BODY,
    "header without name": _OK + b": a\r\n" + _LENGTH + b"\r\n" + _BODY,
    "space before the colon": _OK + b"content-length : 3\r\n" + b"\r\n" + _BODY,
    "NUL in a header": _OK + b"x: a\0b\r\n" + _LENGTH + b"\r\n" + _BODY,
    "bare LF in a header": _OK + b"x: a\ncontent-length: 3\r\n" + _LENGTH + b"\r\n" + _BODY,
    "bare CR in a header": _OK + b"x: a\rb\r\n" + _LENGTH + b"\r\n" + _BODY,
    "bare LF throughout": (_OK + _LENGTH + b"\r\n").replace(b"\r\n", b"\n") + b"\r\n\r\n" + _BODY,
    "length and coding": _OK + _LENGTH + _CHUNKED + b"\r\n" + chunk(_BODY) + _LAST,
    "coding and length": _OK + _CHUNKED + _LENGTH + b"\r\n" + chunk(_BODY) + _LAST,
    "two lengths": _OK + _LENGTH + b"content-length: 3\r\n\r\n" + _BODY,
    "two lengths the other way": _OK + b"content-length: 3\r\n" + _LENGTH + b"\r\n" + _BODY,
    "negative length": _OK + b"content-length: -3\r\n\r\n" + _BODY,
    "signed length": _OK + b"content-length: +3\r\n\r\n" + _BODY,
    "length in hex": _OK + b"content-length: 0x3\r\n\r\n" + _BODY,
    "empty length": _OK + b"content-length:\r\n\r\n" + _BODY,
    "list of lengths": _OK + b"content-length: 3, 14\r\n\r\n" + _BODY,
    "length of 5,000 digits": _OK + b"content-length: " + b"1" * 5000 + b"\r\n\r\n" + _BODY,
    "gzip coding": _OK + b"transfer-encoding: gzip, chunked\r\n\r\n" + chunk(_BODY) + _LAST,
    "two codings": _OK + b"transfer-encoding: gzip\r\n" + _CHUNKED + b"\r\n" + chunk(_BODY) + _LAST,
    "chunked twice": _OK + _CHUNKED + _CHUNKED + b"\r\n" + chunk(_BODY) + _LAST,
    "identity coding": _OK + b"transfer-encoding: identity\r\n\r\n" + _BODY,
    "head without end": _OK + b"x: " + b"a" * 200_000,
    "many headers": _OK + b"x: y\r\n" * 20_000 + _LENGTH + b"\r\n" + _BODY,
}
_BROKEN_CHUNKS = {
    "size that is none": b"zz\r\n",
    "empty size": b"\r\n" + _BODY,
    "negative size": b"-3\r\nabc\r\n" + _LAST,
    "signed size": b"+3\r\nabc\r\n" + _LAST,
    "size with 0x": b"0x3\r\nabc\r\n" + _LAST,
    "size with underscore": b"1_0\r\n" + b"a" * 16 + b"\r\n" + _LAST,
    "space before the size": b" 3\r\nabc\r\n" + _LAST,
    "size beyond 32 bits": b"100000003\r\nabc\r\n" + _LAST,
    "size beyond 64 bits": b"10000000000000003\r\nabc\r\n" + _LAST,
    "huge size": b"ffffffff\r\nabc\r\n",
    "no line end after the data": b"3\r\nabcde\r\n" + _LAST,
    "LF after the data": b"3\r\nabc\n" + _LAST,
    "LF after the size": b"3\nabc\r\n" + _LAST,
    "size line without end": b"3;" + b"a" * 100_000,
    "LF in an extension": b"3;a\nb\r\nabc\r\n" + _LAST,
    "trailers without end": b"0\r\n" + b"x: y\r\n" * 30_000,
}


async def asked_twice(stand: Stand) -> list[Answer]:
    """The same, as a whole answer and as a stream."""
    return [await stand.post(chat(stream=stream), x_stainless_retry_count="1") for stream in (False, True)]


@pytest.mark.parametrize("said", list(_BROKEN_HEADS.values()), ids=list(_BROKEN_HEADS))
async def test_a_broken_head_is_an_unreachable_engine(journal: Path, said: bytes) -> None:
    async with speaking(journal, said) as (engine, stand):
        for answer in await asked_twice(stand):
            assert (answer.status, answer.error["code"]) == (502, "engine_unreachable")
        await still_serves(engine, stand)


@pytest.mark.parametrize("said", list(_BROKEN_CHUNKS.values()), ids=list(_BROKEN_CHUNKS))
async def test_broken_chunks_before_content_are_an_unreachable_engine(journal: Path, said: bytes) -> None:
    async with speaking(journal, _STREAM + said) as (engine, stand):
        for answer in await asked_twice(stand):
            assert (answer.status, answer.error["code"]) == (502, "engine_unreachable")
        await still_serves(engine, stand)


@pytest.mark.parametrize("said", list(_BROKEN_CHUNKS.values()), ids=list(_BROKEN_CHUNKS))
@pytest.mark.parametrize("together", [True, False])
async def test_broken_chunks_after_content_end_the_stream_with_an_error(
    journal: Path, said: bytes, together: bool
) -> None:
    good = _STREAM + chunk(ROLE) + chunk(event("t0 "))
    pieces = [good + said] if together else [good, said]
    async with speaking(journal, *pieces) as (engine, stand):
        answer = await stand.post(chat(stream=True), x_stainless_retry_count="1")
        if together and answer.status == 502:
            # Nothing of the piece was passed on: the error is the answer.
            assert answer.error["code"] == "engine_unreachable"
        else:
            assert (answer.status, answer.cut) == (200, False)
            assert answer.text == "t0 "
            assert answer.events[-1]["error"]["code"] == "stream_broken"
        record = await stand.one_record()
        assert (record.outcome, record.status) == ("engine_failed", 502)
        await still_serves(engine, stand)


async def test_informational_answers_are_passed_over(journal: Path) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    answer = _OK + _JSON + _LENGTH + b"\r\n" + _BODY
    for said in (
        [b"HTTP/1.1 100 Continue\r\n\r\n" + early + answer],
        [b"HTTP/1.1 100 Continue\r\n\r\n", early, answer],
        [(b"HTTP/1.1 100 Continue\r\n\r\n" + answer)[n : n + 7] for n in range(0, 120, 7)],
        [b"HTTP/1.1 102 Processing\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + answer],
    ):
        async with speaking(journal, *said) as (engine, stand):
            assert (await stand.post(chat())).body == _BODY
            assert len(engine.requests) == 1
            await still_serves(engine, stand)


@pytest.mark.parametrize("count", [5_000, 300_000])
async def test_a_flood_of_informational_answers_ends(journal: Path, count: int) -> None:
    async with speaking(journal, b"HTTP/1.1 100 Continue\r\n\r\n" * count) as (engine, stand):
        for answer in await asked_twice(stand):
            assert (answer.status, answer.error["code"]) == (502, "engine_unreachable")
        await still_serves(engine, stand)


@pytest.mark.parametrize("framing", [_LENGTH, _CHUNKED])
async def test_what_comes_after_an_answer_is_nobodys(journal: Path, framing: bytes) -> None:
    body = _BODY if framing == _LENGTH else chunk(_BODY) + _LAST
    answer = _OK + _JSON + framing + b"\r\n" + body
    stolen = b'HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{"a":1}'
    for pieces in ([answer + stolen], [answer, stolen]):
        async with speaking(journal, *pieces) as (engine, stand):
            idle = stand.gateway.table.routes()[0].endpoints[0].idle
            for number in (1, 2, 3):
                assert (await stand.post(chat())).body == _BODY
                # What comes while a connection is idle ends it.
                await until(partial(_is_empty, idle))
                assert engine.connections == number
            await still_serves(engine, stand)


def _is_empty(some: list[Connection]) -> bool:
    return not some


async def test_an_engine_that_speaks_first_is_not_believed(journal: Path) -> None:
    greeting = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.readuntil(b"\r\n\r\n")

    async with listening(greet) as url, Upstream() as good, standing(journal, route(url, good)) as stand:
        for _ in range(10):
            answer = await stand.post(chat())
            # The greeting may come before the request is sent, or while its answer is awaited.
            assert answer.body == b"{}" or answer.json["choices"][0]["message"]["content"] == "t0 t1 t2 "
        assert stand.gateway.open_requests == 0


async def test_bodies_that_are_none(journal: Path) -> None:
    for said in (
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n",
    ):
        async with speaking(journal, said) as (engine, stand):
            raw = await stand.connect()
            for stream in (False, True):
                raw.send(request(chat(stream=stream)))
                answer = await raw.answer()
                assert (answer.status, answer.body) == (204, b"")
                assert "content-length" not in answer.headers
            await still_serves(engine, stand)
    for status in (304, 300, 303, 308, 199):
        said = b"HTTP/1.1 %d X\r\nlocation: http://127.0.0.1:1/\r\n\r\n" % status
        async with speaking(journal, said, close=True) as (engine, stand):
            for answer in await asked_twice(stand):
                assert answer.status == 502
                assert answer.error["type"] == "server_error"
            await still_serves(engine, stand)


async def test_a_head_in_an_empty_answer(journal: Path) -> None:
    async with speaking(journal, _OK + b"content-length: 0\r\n\r\n") as (engine, stand):
        answer = await stand.post(chat())
        assert (answer.status, answer.body) == (200, b"")
        await still_serves(engine, stand)


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("size", [200_000, 8_000_000])
async def test_an_answer_before_the_request_was_read(journal: Path, size: int, close: bool) -> None:
    """Its connection holds the rest of a request, so no other request may follow on it."""
    seen: list[bytes] = []

    async def answer_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b'{"error":{"message":"too large","type":"invalid_request_error","code":413}}'
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append(head)
            writer.write(b"HTTP/1.1 413 X\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            if close:
                return
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))

    async with listening(answer_at_once) as url, standing(journal, route(url)) as stand:
        for number in (1, 2, 3):
            told = await stand.post(chat("x" * size))
            assert (told.status, told.error["message"]) == (413, "too large")
            assert len(seen) == number
            assert all(head.startswith(b"POST /v1/chat/completions") for head in seen)


def _lines(ending: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(b"\n", ending)


@pytest.mark.parametrize("ending", [b"\r\n", b"\r", b"\n"])
@pytest.mark.parametrize("cut", [1, 2, 3, 5, 1000])
async def test_events_end_their_lines_in_any_way_and_are_cut_anywhere(
    journal: Path, ending: bytes, cut: int
) -> None:
    translate = _lines(ending)
    content = b"".join(translate(e) for e in _EVENTS)
    framed = b"".join(chunk(content[n : n + cut]) for n in range(0, len(content), cut))
    async with speaking(journal, _STREAM + framed + _LAST) as (engine, stand):
        answer = await stand.post(chat(stream=True))
        assert answer.body == content
        record = await stand.one_record()
        assert (record.completion_tokens, record.outcome) == (2, "done")
        await still_serves(engine, stand)


async def test_an_event_may_be_long_and_not_too_long(journal: Path) -> None:
    long = event("x" * 1_000_000)
    for pieces in (
        [chunk(long)],
        [chunk(long[n : n + 999]) for n in range(0, len(long), 999)],
    ):
        said = [_STREAM + chunk(ROLE), *pieces, chunk(FINISH) + chunk(DONE) + _LAST]
        async with speaking(journal, b"".join(said)) as (engine, stand):
            answer = await stand.post(chat(stream=True))
            assert len(answer.text) == 1_000_000
            await still_serves(engine, stand)
    endless = chunk(b"data: " + b"x" * 60_000) + chunk(b"x" * 60_000) * 100
    async with Upstream(Reply(raw=[_STREAM + chunk(ROLE) + chunk(event("t0 ")), endless])) as engine:
        settings = {"event_max_bytes": 100_000}
        async with standing(journal, route(engine), upstream=settings) as stand:
            answer = await stand.post(chat(stream=True))
            assert answer.events[-1]["error"]["code"] == "stream_broken"
            await still_serves(engine, stand)


def test_a_long_event_in_small_pieces_costs_no_more_than_its_length() -> None:
    """What was searched for an event's end is not searched again with each piece."""

    def cost(size: int) -> float:
        long = event("x" * size)
        pieces = [chunk(long[n : n + 500]) for n in range(0, len(long), 500)]
        relay = StreamRelay(chunked=True, hide_usage=True, event_max_bytes=2 * size)
        began = time.process_time()
        given = b"".join(relay.block(piece, False) for piece in pieces)
        assert len(given) > size
        return time.process_time() - began

    # Sixteen times the length; 256 times the cost if each piece were joined to all before it.
    assert min(cost(1_600_000) for _ in range(3)) < 64 * min(cost(100_000) for _ in range(5))


async def test_a_large_answer_in_one_chunk_is_no_large_event(journal: Path) -> None:
    body = b'{"x":"' + b"y" * 12_000_000 + b'"}'
    async with speaking(journal, _OK + _JSON + _CHUNKED + b"\r\n" + chunk(body) + _LAST) as (engine, stand):
        answer = await stand.post(chat())
        assert (answer.status, answer.body) == (200, body)
        await still_serves(engine, stand)


async def test_chunk_extensions_and_trailers_of_an_engine_are_not_passed_on(journal: Path) -> None:
    pieces = [chunk(e).replace(b"\r\n", b";name=value\r\n", 1) for e in _EVENTS]
    said = _STREAM + b"".join(pieces) + b"0;x\r\nx-secret: 1\r\nset-cookie: a=b\r\n\r\n"
    async with speaking(journal, said) as (engine, stand):
        raw = await stand.connect()
        raw.send(request(chat(stream=True), connection="close"))
        everything = await asyncio.wait_for(raw.reader.read(), 10)
        assert b"x-secret" not in everything
        assert b"set-cookie" not in everything
        assert everything.endswith(b"\r\n" + _LAST)
        await still_serves(engine, stand)


async def test_headers_of_an_engine_stay_where_they_are(journal: Path) -> None:
    odd = b"set-cookie: a=b\r\nx-request-id: theirs\r\nserver: theirs\r\nconnection: x-hop\r\nx-hop: 1\r\n"
    for said in (
        _OK + _JSON + odd + _LENGTH + b"\r\n" + _BODY,
        _OK + _SSE + odd + _CHUNKED + b"\r\n" + b"".join(chunk(e) for e in _EVENTS) + _LAST,
    ):
        async with speaking(journal, said) as (_, stand):
            answer = await stand.post(chat(stream=_SSE in said))
            assert answer.status == 200
            assert not {"set-cookie", "server", "x-hop"} & set(answer.headers)
            assert answer.headers["x-request-id"].startswith("req_")
