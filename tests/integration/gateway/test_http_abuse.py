"""HTTP as it should not be: each case gets one clear answer or a closed connection, never two meanings."""

import asyncio
from pathlib import Path

import pytest

from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.harness import KEY, chat, request, route, standing

_START = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"
_BODY = b'{"model":"m","messages":[]}'
_LENGTH = b"content-length: %d\r\n" % len(_BODY)
_CHUNKED = _START + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        _START + _LENGTH + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        _START + b"transfer-encoding: chunked\r\n" + _LENGTH + b"\r\n0\r\n\r\n",
        _START + _LENGTH + _LENGTH + b"\r\n" + _BODY,
        _START + b"content-length: 5, 5\r\n\r\n",
        _START + b"content-length: +5\r\n\r\n",
        _START + b"content-length: -5\r\n\r\n",
        _START + b"content-length: 99999999999999999999999\r\n\r\n",
        _START + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        _START + b"transfer-encoding: identity\r\n\r\n",
        _START.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        _START + b"x-folded: a\r\n b\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + b"x : b\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + b"x: a\0b\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"\r\n", b"\n") + _LENGTH + b"\n" + _BODY,
        _START[:-2] + b"\n" + _LENGTH + b"\r\n" + _BODY,
        _START + _LENGTH + b"\r\n\r\n".replace(b"\r\n\r\n", b"\n\n") + _BODY,
        _START + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        _START + b"transfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        _START + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        _START + b"transfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        _START + b"transfer-encoding: chunked\r\n\r\n3\nabc\n0\n\n",
        _CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
        _CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
        _CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n",
        _CHUNKED + b"\r\n",
        _CHUNKED + b";a=b\r\nabc\r\n",
        _CHUNKED + b"3;a\nb\r\nabc\r\n0\r\n\r\n",
        _CHUNKED + b"3;a\rb\r\nabc\r\n0\r\n\r\n",
        _CHUNKED + b"3;\0\r\nabc\r\n0\r\n\r\n",
        _CHUNKED + b"3\r\nabc0\r\n\r\n",
        _CHUNKED + b"0\r\nx : y\r\n\r\n",
        _CHUNKED + b"0\r\n x: y\r\n\r\n",
        _CHUNKED + b"0\r\nx: a\0b\r\n\r\n",
        _CHUNKED + b"0\r\nx: y\n\n",
        _START + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        _START + b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        _START + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        _START + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        _START + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        _START + b"transfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        _START + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        _START + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        _START + b"transfer-encoding:\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + _LENGTH + b"content-length: 0\r\n\r\n" + _BODY,
        _START + b"content-length: \r\n\r\n",
        _START + b"content-length: 0x1b\r\n\r\n" + _BODY,
        _START + b"content-length: 2 7\r\n\r\n" + _BODY,
        _START + b"content-length: 27,\r\n\r\n" + _BODY,
        _START + b"content-length: 27.0\r\n\r\n" + _BODY,
        _START + b"content-length: 18446744073709551643\r\n\r\n" + _BODY,  # 2**64 + 27
        _START + "content-length: \N{FULLWIDTH DIGIT ONE}\r\n\r\n".encode() + _BODY,
        _START + b"x: a\rb\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + b"x: a\r\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + b"x: a\nb: c\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + b"x: a\x01b\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + b"x: a\x7fb\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + b"x\0: a\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + b"x(y): a\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + b"x\xe9: a\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + b": a\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START + b"nonsense\r\n" + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"\r\nhost", b"\r\n host") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"host: x", b"host: x\r\nhost: y") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"\r\n", b"\r", 1) + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"POST", b"post") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"POST", b"P0ST") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"POST", b"TRACK") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b" HTTP/1.1", b"") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"HTTP/1.1", b"HTTP/1.1 x") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"HTTP/1.1", b"http/1.1") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"HTTP/1.1", b"HTTP/1.10") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"HTTP/1.1", b"HTTP/0.9") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"HTTP/1.1", b"HTTP/2.0") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"/v1/chat", b"/v1/ chat") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"/v1/chat", b"/v1/\0chat") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"/v1/chat", b"/v1/\xff") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"/v1/chat/completions", b"*") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"/v1/chat", b"ftp://x/v1/chat") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"/v1/chat", b"http:///v1/chat") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"/v1/chat", b"http://x:99999999/v1/chat") + _LENGTH + b"\r\n" + _BODY,
        b"GET /\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT /v1/chat/completions HTTP/1.1\r\nhost: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"\0" * 32,
        _START.replace(b"host: x\r\n", b"") + _LENGTH + b"\r\n" + _BODY,
        _START.replace(b"/v1/chat/completions", b"v1") + _LENGTH + b"\r\n" + _BODY,
        b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.7\r\nhost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_is_malformed_gets_400_and_a_closed_connection(journal: Path, data: bytes) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(data + request(chat()))
        answer = await raw.answer()
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
        assert answer.headers["connection"] == "close"
        assert await raw.closed()
        assert not engine.requests
        assert (await stand.post(chat())).status == 200


async def test_pipelined_requests_are_answered_in_order(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        engine.replies.append(Reply(delay_seconds=0.1, body=b'{"n":1}'))
        raw = await stand.connect()
        models = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()
        raw.send(
            request(chat()) + models + request(chat(stream=True)) + request(b"{") + models + request(chat())
        )
        assert (await raw.answer()).json == {"n": 1}
        assert (await raw.answer()).json["object"] == "list"
        assert (await raw.answer()).text == "t0 t1 t2 "
        assert (await raw.answer()).status == 400
        assert (await raw.answer()).json["object"] == "list"
        assert (await raw.answer()).status == 200


async def test_a_long_pipeline_of_refusals(journal: Path) -> None:
    async with standing(journal) as stand:
        raw = await stand.connect()
        raw.send(request(chat()) * 3000)
        for _ in range(3000):
            assert (await raw.answer()).status == 404


async def test_rubbish_behind_a_request_is_answered_behind_its_answer(journal: Path) -> None:
    async with Upstream(Reply(delay_seconds=0.1)) as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(request(chat()) + b"rubbish\r\n\r\n" + request(chat()))
        assert (await raw.answer()).status == 200
        assert (await raw.answer()).status == 400
        assert await raw.closed()
        assert len(engine.requests) == 1


async def test_connection_close_is_obeyed(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        for stream in (False, True):
            raw = await stand.connect()
            raw.send(request(chat(stream=stream), connection="close") + request(chat()))
            answer = await raw.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await raw.closed()
        assert len(engine.requests) == 2


async def test_an_upgrade_is_not_made(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(request(chat(), connection="Upgrade, HTTP2-Settings", upgrade="h2c", http2_settings="x"))
        answer = await raw.answer()
        assert answer.status == 200
        raw.send(request(chat(), connection="close, upgrade", upgrade="websocket") * 2)
        assert (await raw.answer()).headers["connection"] == "close"
        assert await raw.closed()
        assert len(engine.requests) == 2
        assert engine.requests[0].body == chat()
        assert not {"upgrade", "http2-settings", "connection"} & set(engine.requests[0].headers)


@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_a_chunked_body_is_taken_and_its_trailers_are_not(journal: Path, pieces: int) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        chunks = b"".join(
            b"%x;e=1\r\n%b\r\n" % (len(_BODY[n : n + 5]), _BODY[n : n + 5]) for n in range(0, len(_BODY), 5)
        )
        data = _START + b"transfer-encoding: chunked\r\n\r\n" + chunks
        data += b"0\r\nx-trailer: 1\r\nauthorization: Bearer x\r\n\r\n"
        raw = await stand.connect()
        for n in range(0, len(data), max(1, len(data) // pieces)):
            raw.send(data[n : n + max(1, len(data) // pieces)])
            await asyncio.sleep(0)
        assert (await raw.answer()).status == 200
        assert engine.requests[0].raw_body == _BODY
        assert "x-trailer" not in engine.requests[0].headers


async def test_expect_100_continue(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(_START + _LENGTH + b"expect: 100-continue\r\n\r\n")
        assert (await raw.answer()).status == 100
        raw.send(_BODY)
        assert (await raw.answer()).status == 200
        assert "expect" not in engine.requests[0].headers
        refused = await stand.connect()
        refused.send(_START.replace(KEY.encode(), b"no") + _LENGTH + b"expect: 100-continue\r\n\r\n")
        assert (await refused.answer()).status == 401
        assert await refused.closed()
        odd = await stand.connect()
        odd.send(_START + _LENGTH + b"expect: tea\r\n\r\n")
        assert (await odd.answer()).status == 417


async def test_heads_have_a_size(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        assert (await stand.post(chat(), x_big="a" * 60_000)).status == 200
        for big in ("a" * 70_000, "a" * 400_000):
            answer = await stand.post(chat(), x_big=big)
            assert (answer.status, answer.error["type"]) == (431, "invalid_request_error")
        raw = await stand.connect()
        raw.send(_START + b"x: " + b"a" * 70_000)  # no end in sight
        assert (await raw.answer()).status == 431


async def test_bodies_have_a_size(journal: Path) -> None:
    async with (
        Upstream() as engine,
        standing(journal, route(engine), intake={"body_max_bytes": 100_000}) as stand,
    ):
        assert (await stand.post(chat("a" * 90_000))).status == 200
        stated = await stand.post(chat("a" * 2_000_000))
        assert (stated.status, stated.headers["connection"]) == (413, "close")
        raw = await stand.connect()
        raw.send(_START + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            raw.send(b"2710\r\n" + b"a" * 10_000 + b"\r\n")
        assert (await raw.answer()).status == 413
        assert await raw.closed()
        assert len(engine.requests) == 1


async def test_a_refusal_does_not_wait_for_a_large_body(journal: Path) -> None:
    async with standing(journal) as stand:
        raw = await stand.connect()
        raw.send(_START.replace(KEY.encode(), b"no") + b"content-length: 1000000\r\n\r\n" + b"a" * 1000)
        answer = await raw.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        small = await stand.connect()
        for _ in range(2):
            small.send(request(chat(), authorization="Bearer no"))
            refused = await small.answer()
            assert refused.status == 401
            assert "connection" not in refused.headers


async def test_slow_heads_and_bodies_are_cut(journal: Path) -> None:
    intake = {"head_seconds": 0.4, "body_seconds": 0.4, "keep_alive_seconds": 0.4}
    async with Upstream() as engine, standing(journal, route(engine), intake=intake) as stand:
        head, body, idle = [await stand.connect() for _ in range(3)]
        head.send(b"POST /v1/chat")
        body.send(_START + _LENGTH + b"\r\n{")
        idle.send(request(chat()))
        assert (await head.answer()).status == 408
        assert await head.closed()
        assert (await body.answer()).status == 408
        assert (await idle.answer()).status == 200
        assert await idle.closed()
        drip = await stand.connect()
        for byte in b"POST /v1/chat/completions HTTP/1.1\r\n":
            drip.send(bytes([byte]))
            await asyncio.sleep(0.05)
            if drip.reader._buffer:  # pyright: ignore  # peek: is there an answer yet?
                break
        assert (await drip.answer()).status == 408


async def test_compressed_bodies_are_refused(journal: Path) -> None:
    async with standing(journal) as stand:
        assert (await stand.post(chat(), content_encoding="gzip")).status == 415


async def test_an_application_path_that_answers_before_its_body_closes(journal: Path) -> None:
    async with standing(journal) as stand:
        raw = await stand.connect()
        raw.send(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b"a" * 100)
        assert (await raw.answer()).status == 404
        assert await raw.closed()


async def test_a_head_that_came_before_is_read_as_the_first_time(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        for number in range(4):
            raw.send(request(chat("x" * number * 1000)))
            assert (await raw.answer()).status == 200
        whole = request(chat("y" * 500_000))
        for start in range(0, len(whole), 100_000):
            raw.send(whole[start : start + 100_000])
            await asyncio.sleep(0.01)
        assert (await raw.answer()).status == 200
        # Two at once, and one that begins in the piece that ends another.
        raw.send(request(chat("a")) + request(chat("b")))
        assert [(await raw.answer()).status for _ in range(2)] == [200, 200]
        long, short = request(chat("c" * 300_000)), request(chat("d"))
        raw.send(long[:1000])
        await asyncio.sleep(0.02)
        raw.send(long[1000:] + short[:20])
        await asyncio.sleep(0.02)
        raw.send(short[20:])
        assert [(await raw.answer()).status for _ in range(2)] == [200, 200]
        sent = [each.body["messages"][0]["content"] for each in engine.requests]
        assert [len(content) for content in sent] == [0, 1000, 2000, 3000, 500_000, 1, 1, 300_000, 1]
        assert [content[:1] for content in sent[4:]] == ["y", "a", "b", "c", "d"]


async def test_a_key_that_goes_is_refused_though_its_head_is_known(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        for _ in range(3):
            raw.send(request(chat()))
            assert (await raw.answer()).status == 200
        stand.gateway.keys.replace([])
        raw.send(request(chat()))
        assert (await raw.answer()).status == 401
        assert len(engine.requests) == 3


async def test_the_rest_of_a_body_that_does_not_come(journal: Path) -> None:
    intake = {"body_seconds": 0.3}
    async with Upstream() as engine, standing(journal, route(engine), intake=intake) as stand:
        raw = await stand.connect()
        raw.send(request(chat()))
        assert (await raw.answer()).status == 200
        raw.send(request(chat("x" * 1000))[:-10])
        answer = await raw.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert await raw.closed()
        assert len(engine.requests) == 1
