"""The order of things: what is expected, pipelined, answered early, and closed, each in its turn."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.harness import KEY, Raw, chat, request, route, standing, until

_BODY = b'{"model":"m","messages":[]}'
_AUTH = f"authorization: Bearer {KEY}\r\n".encode()


def post(*lines: str, path: str = "/v1/chat/completions", version: str = "1.1", key: str = KEY) -> bytes:
    """The head of a POST."""
    named = (f"POST {path} HTTP/{version}", "host: x", f"authorization: Bearer {key}", *lines)
    return ("\r\n".join(named) + "\r\n\r\n").encode()


def simple(method: str, path: str) -> bytes:
    """A request without a body."""
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n".encode() + _AUTH + b"\r\n"


LENGTH = f"content-length: {len(_BODY)}"
EXPECT = "expect: 100-continue"
CHUNKED = "transfer-encoding: chunked"
CHUNKS = b"5\r\n" + _BODY[:5] + b"\r\n%x\r\n" % (len(_BODY) - 5) + _BODY[5:] + b"\r\n0\r\n\r\n"


async def no_answer_yet(raw: Raw) -> None:
    """Fails if anything comes within a moment."""
    with pytest.raises(TimeoutError):
        await raw.line(0.15)


async def test_every_kind_of_request_in_one_pipeline(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        engine.replies.append(Reply(delay_seconds=0.1))
        pipeline: list[tuple[bytes, int, bool]] = [
            (request(chat()), 200, False),
            (simple("HEAD", "/v1/models"), 200, True),
            (simple("GET", "/v1/models"), 200, False),
            (simple("HEAD", "/v1/chat/completions"), 405, True),
            (request(chat(stream=True)), 200, False),
            (simple("OPTIONS", "/v1/chat/completions"), 204, False),
            (request(b"{"), 400, False),
            (request(chat(), authorization="Bearer no"), 401, False),
            (post(CHUNKED) + CHUNKS, 200, False),
            (simple("DELETE", "/nowhere"), 404, False),
            (post(LENGTH, path="/nowhere") + _BODY, 404, False),
            (post(LENGTH, EXPECT) + _BODY, 200, False),
            (request({**chat(), "model": "x"}), 404, False),
            (simple("GET", "/livez"), 200, False),
            (request(chat(stream=True), connection="close"), 200, False),
        ]
        everything = b"".join(data for data, _, _ in pipeline)
        for size in (len(everything), 500, 61):
            raw = await stand.connect()
            for start in range(0, len(everything), size):
                raw.send(everything[start : start + size])
                await asyncio.sleep(0.001)
            for data, status, empty in pipeline:
                answer = await raw.answer(head_only=empty)
                if answer.status == 100:
                    answer = await raw.answer()
                assert answer.status == status, data
                assert answer.headers["x-request-id"]
            assert await raw.closed()
        assert stand.gateway.open_requests == 0


class TestExpect:
    """`Expect: 100-continue`."""

    async def test_the_body_is_asked_for_once_and_only_when_it_is_missing(self, journal: Path) -> None:
        async with Upstream() as engine, standing(journal, route(engine)) as stand:
            for framing, body in ((LENGTH, _BODY), (CHUNKED, CHUNKS)):
                waits = await stand.connect()
                waits.send(post(framing, EXPECT))
                assert (await waits.answer()).status == 100
                waits.send(body[:3])
                await no_answer_yet(waits)
                waits.send(body[3:])
                assert (await waits.answer()).status == 200
                hasty = await stand.connect()
                hasty.send(post(framing, EXPECT) + body)
                first = await hasty.answer()
                answer = await hasty.answer() if first.status == 100 else first
                assert answer.status == 200

    async def test_behind_another_request_it_is_asked_for_in_turn(self, journal: Path) -> None:
        async with Upstream() as engine, standing(journal, route(engine)) as stand:
            engine.replies.append(Reply(hold_after=1))
            raw = await stand.connect()
            raw.send(request(chat(stream=True)) + post(LENGTH, EXPECT))
            while b"t0 " not in await raw.line():
                pass
            await raw.line()
            await raw.line()
            await no_answer_yet(raw)
            engine.go.set()
            assert b"HTTP/1.1 100 Continue" in await raw.reader.readuntil(b"100 Continue\r\n\r\n")
            raw.send(_BODY)
            assert (await raw.answer()).status == 200

    async def test_of_http_1_0_or_without_a_body_nothing_is_asked_for(self, journal: Path) -> None:
        async with Upstream() as engine, standing(journal, route(engine)) as stand:
            old = await stand.connect()
            old.send(post(LENGTH, EXPECT, version="1.0"))
            await no_answer_yet(old)
            old.send(_BODY)
            assert (await old.answer()).status == 200
            empty = await stand.connect()
            empty.send(post("content-length: 0", EXPECT))
            answer = await empty.answer()
            if answer.status == 100:
                answer = await empty.answer()
            assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")

    @pytest.mark.parametrize(
        ("lines", "key", "status"),
        [
            ([LENGTH, EXPECT], "no", 401),
            ([CHUNKED, EXPECT], "no", 401),
            (["content-length: 999999999", EXPECT], KEY, 413),
            ([LENGTH, "expect: 200-ok"], KEY, 417),
            ([LENGTH, "expect: 100-continue, tea"], KEY, 417),
            ([LENGTH, EXPECT, "content-encoding: gzip"], KEY, 415),
        ],
    )
    async def test_a_refusal_comes_instead(
        self, journal: Path, lines: list[str], key: str, status: int
    ) -> None:
        async with Upstream() as engine, standing(journal, route(engine)) as stand:
            for before in (b"", request(chat())):
                raw = await stand.connect()
                raw.send(before + post(*lines, key=key))
                if before:
                    assert (await raw.answer()).status == 200
                answer = await raw.answer()
                assert (answer.status, answer.headers["connection"]) == (status, "close")
                assert answer.error["type"] == "invalid_request_error"
                assert await raw.closed()

    async def test_paths_of_the_application(self, journal: Path) -> None:
        async with standing(journal) as stand:
            raw = await stand.connect()
            raw.send(post("content-length: 10", EXPECT, path="/nowhere"))
            answer = await raw.answer()
            assert (answer.status, answer.headers["connection"]) == (404, "close")
            assert await raw.closed()

    async def test_a_client_that_then_says_nothing_is_cut(self, journal: Path) -> None:
        intake = {"body_seconds": 0.3}
        async with standing(journal, intake=intake) as stand:
            raw = await stand.connect()
            raw.send(post(LENGTH, EXPECT))
            assert (await raw.answer()).status == 100
            answer = await raw.answer()
            assert (answer.status, answer.error["type"]) == (408, "invalid_request_error")
            assert await raw.closed()


async def test_head_and_options_leave_the_connection_in_step(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        for path, status in (
            ("/v1/models", 200),
            ("/v1/chat/completions", 405),
            ("/x", 404),
            ("/livez", 200),
        ):
            raw.send(simple("HEAD", path))
            answer = await raw.answer(head_only=True)
            assert (answer.status, answer.body) == (status, b"")
            raw.send(simple("OPTIONS", path))
            answer = await raw.answer()
            assert answer.status in (204, 404)
            assert answer.status == 404 or not answer.body
        raw.send(request(chat()))
        assert (await raw.answer()).status == 200
        for broken in (b"host: b\r\n\r\n", b"x: \0"):
            bad = await stand.connect()
            bad.send(b"HEAD /v1/models HTTP/1.1\r\nhost: a\r\n" + broken)
            head = await bad.answer(head_only=True)
            assert (head.status, head.headers["connection"]) == (400, "close")
            assert await bad.closed()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nowhere"])
@pytest.mark.parametrize("framing", ["content-length: 5000000", CHUNKED])
async def test_an_answer_while_the_body_still_arrives_says_that_it_closes(
    journal: Path, path: str, framing: str
) -> None:
    async with standing(journal) as stand:
        raw = await stand.connect()
        raw.send(post(framing, path=path, key="no"))
        if framing == CHUNKED:
            raw.send((b"8000\r\n" + b"a" * 0x8000 + b"\r\n") * 4)
        answer = await raw.answer()
        assert answer.status == (404 if path == "/nowhere" else 401)
        assert answer.headers["connection"] == "close"
        # The client goes on writing for a while, as most do: it is neither reset nor answered again.
        for _ in range(20):
            raw.send(b"a" * 10_000)
            await asyncio.sleep(0.001)
        assert await raw.closed()


async def test_small_bodies_of_unknown_paths_leave_the_connection_open(journal: Path) -> None:
    async with standing(journal) as stand:
        raw = await stand.connect()
        for _ in range(3):
            raw.send(post("content-length: 10", path="/nowhere"))
            await asyncio.sleep(0.01)
            raw.send(b"a" * 10)
            answer = await raw.answer()
            assert (answer.status, answer.headers.get("connection")) == (404, None)


@pytest.mark.parametrize("what", ["extension", "trailers", "trailer", "leading zeros"])
async def test_bytes_around_a_body_have_a_size(journal: Path, what: str) -> None:
    """They are no body, so no limit of bodies holds them; the parser would keep a trailer of any size."""
    start, piece = {
        "extension": (b"3;", b"a" * 10_000),
        "trailers": (CHUNKS[:-2], b"x: " + b"y" * 1000 + b"\r\n"),
        "trailer": (CHUNKS[:-2] + b"x: ", b"y" * 10_000),
        "leading zeros": (b"", b"0" * 10_000),
    }[what]
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(post(CHUNKED) + start)
        for _ in range(40_000_000 // len(piece)):
            raw.send(piece)
            await asyncio.sleep(0)
            if raw.reader._buffer:  # pyright: ignore  # peek: is there an answer yet?
                break
        answer = await raw.answer()
        assert answer.status in (400, 431)
        assert answer.error["type"] == "invalid_request_error"
        assert await raw.closed()
        assert not engine.requests


async def test_trailers_say_nothing_that_is_obeyed(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        for trailer, statuses in (
            (b"authorization: Bearer no\r\nhost: a\r\n", [200, 200]),
            (b"connection: upgrade\r\nupgrade: x\r\n", [200]),
            (b"connection: close\r\n", [200]),
            (b"content-length: 3\r\n", [400]),
            (b"transfer-encoding: chunked\r\n", [400]),
        ):
            raw = await stand.connect()
            raw.send(post(CHUNKED) + CHUNKS[:-2] + trailer + b"\r\n" + request(chat()))
            answers = [await raw.answer() for _ in statuses]
            assert [answer.status for answer in answers] == statuses
            if len(statuses) == 1:
                assert answers[0].headers["connection"] == "close"
                assert await raw.closed()


async def test_many_small_chunks_are_a_body_like_any_other(journal: Path) -> None:
    body = b'{"model":"m","messages":[],"x":"' + b"y" * 100_000 + b'"}'
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(post(CHUNKED) + b"".join(b"1;e=1\r\n%c\r\n" % byte for byte in body) + b"0\r\nt: 1\r\n\r\n")
        assert (await raw.answer()).status == 200
        assert engine.requests[0].raw_body == body


async def test_a_body_that_drips_is_cut(journal: Path) -> None:
    intake = {"body_seconds": 0.4}
    async with Upstream() as engine, standing(journal, route(engine), intake=intake) as stand:
        for framing, piece in ((CHUNKED, b"1\r\n \r\n"), (CHUNKED, b"0"), ("content-length: 1000", b" ")):
            raw = await stand.connect()
            raw.send(post(framing))
            for _ in range(1000):
                raw.send(piece)
                await asyncio.sleep(0.05)
                if raw.reader._buffer:  # pyright: ignore  # peek: is there an answer yet?
                    break
            answer = await raw.answer()
            assert (answer.status, answer.error["type"]) == (408, "invalid_request_error")
            assert await raw.closed()
        assert not engine.requests


class TestStopping:
    """A gateway that is told to stop finishes what it has begun, and says that it closes."""

    async def test_idle_connections_close_and_requests_under_way_end(self, journal: Path) -> None:
        async with (
            Upstream(Reply(hold_after=1)) as engine,
            standing(journal, route(engine), http={"drain_seconds": 30}) as stand,
        ):
            idle, fresh, stream, half, whole = [await stand.connect() for _ in range(5)]
            engine.replies.append(Reply())
            idle.send(request(chat()))
            assert (await idle.answer()).status == 200
            stream.send(request(chat(stream=True)))
            while b"t0 " not in await stream.line():
                pass
            await stream.line()
            await stream.line()
            half.send(request(chat())[:-5])
            engine.replies.append(Reply(delay_seconds=0.5))
            whole.send(request(chat()))
            await until(lambda: stand.gateway.stats.connections == 5 and stand.gateway.open_requests == 2)
            os.kill(os.getpid(), signal.SIGTERM)
            assert await idle.closed()
            assert await fresh.closed()
            answer = await whole.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await whole.closed()
            engine.reply = Reply()
            half.send(request(chat())[-5:])
            answer = await half.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await half.closed()
            stream.send(request(chat()))  # too late: nothing more is begun here
            engine.go.set()
            rest = await asyncio.wait_for(stream.reader.read(), 10)
            assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            assert len(engine.requests) == 4
