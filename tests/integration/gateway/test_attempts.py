"""Engines that fail, clients that leave, lines that are full: what is tried again, told and counted."""

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest
from cortex_shared.contracts.routes import TimeLimits

from tests.fakes.upstream import Reply, Upstream, chunk, event
from tests.integration.gateway.harness import Stand, chat, request, route, standing, table, until


def dead_url() -> str:
    """An address where nothing listens."""
    return "http://127.0.0.1:1"


async def test_a_dead_engine_costs_no_request(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(dead_url(), engine)) as stand:
        for _ in range(8):
            assert (await stand.post(chat())).status == 200
        assert all(r.outcome == "done" for r in stand.records())
        evidence = [e.evidence for e in stand.gateway.table.routes()[0].endpoints]
        assert evidence[0].connect_failures == 1  # and passed over for a while
        assert evidence[1].successes == 8


async def test_the_last_engine_is_always_tried(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        await engine.stop()
        for _ in range(3):
            answer = await stand.post(chat())
            assert (answer.status, answer.error["code"]) == (502, "engine_unreachable")
        await engine.start()
        assert (await stand.post(chat())).status == 200


@pytest.mark.parametrize("die", ["at_once", "after_head", "mid_body"])
async def test_a_whole_answer_that_breaks_is_got_elsewhere(journal: Path, die: str) -> None:
    async with (
        Upstream(Reply(die=die)) as bad,
        Upstream() as good,
        # Chance may send any number of them to the bad one first.
        standing(journal, route(bad, good), upstream={"retry_burst": 20}) as stand,
    ):
        for _ in range(20):
            answer = await stand.post(chat())
            assert answer.json["choices"][0]["message"]["content"] == "t0 t1 t2 "
        assert bad.requests
        assert max(r.attempts for r in stand.records()) == 2


@pytest.mark.parametrize("die", ["at_once", "before_content"])
async def test_a_stream_that_breaks_before_its_first_content_is_got_elsewhere(
    journal: Path, die: str
) -> None:
    async with (
        Upstream(Reply(die=die)) as bad,
        Upstream() as good,
        # Chance may send any number of them to the bad one first.
        standing(journal, route(bad, good), upstream={"retry_burst": 20}) as stand,
    ):
        for _ in range(20):
            answer = await stand.post(chat(stream=True))
            assert answer.text == "t0 t1 t2 "
            assert answer.body.count(b'"role":"assistant"') == 1
        assert bad.requests


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_engine_that_refuses_sends_the_request_elsewhere(journal: Path, status: int) -> None:
    async with (
        Upstream(Reply(status=status)) as bad,
        Upstream() as good,
        standing(journal, route(bad, good)) as stand,
    ):
        for stream in (False, True) * 3:
            assert (await stand.post(chat(stream=stream))).status == 200


async def test_an_error_event_before_content_is_tried_elsewhere_or_becomes_a_status(journal: Path) -> None:
    overloaded = b'data: {"error":{"message":"full","type":"x","code":503}}\n\n'
    async with (
        # vLLM says that it is done after an error too.
        Upstream(Reply(error_event=overloaded + b"data: [DONE]\n\n")) as bad,
        Upstream() as good,
        standing(journal, route(bad, good), route(bad, name="one")) as stand,
    ):
        for _ in range(4):
            assert (await stand.post(chat(stream=True))).text == "t0 t1 t2 "
        alone = await stand.post({**chat(stream=True), "model": "one"})
        assert (alone.status, alone.error["message"]) == (503, "full")
        bad.reply = Reply(
            error_event=b'data: {"error":{"message":"no","type":"BadRequestError","code":400}}\n\n'
        )
        told = await stand.post({**chat(stream=True), "model": "one"})
        assert (told.status, told.error["type"]) == (400, "invalid_request_error")


async def test_at_most_three_attempts_and_none_added_to_a_client_that_retries(journal: Path) -> None:
    async with Upstream(Reply(status=500)) as engine, standing(journal, route(*[engine] * 5)) as stand:
        assert (await stand.post(chat())).status == 500
        assert len(engine.requests) == 3
        await stand.post(chat(), x_stainless_retry_count="1")
        assert len(engine.requests) == 4


async def test_the_retry_budget_ends_storms(journal: Path) -> None:
    async with (
        Upstream(Reply(status=500)) as engine,
        standing(journal, route(engine, engine), upstream={"retry_burst": 3}) as stand,
    ):
        for _ in range(20):
            await stand.post(chat())
        assert 20 + 3 <= len(engine.requests) <= 20 + 3 + 20 * 0.2 + 1


async def test_a_client_error_is_not_tried_again(journal: Path) -> None:
    async with Upstream(Reply(status=400)) as engine, standing(journal, route(engine, engine)) as stand:
        assert (await stand.post(chat())).status == 400
        assert len(engine.requests) == 1


@pytest.mark.parametrize("die", ["mid_stream", "mid_event", "mid_chunk", "no_done"])
async def test_a_stream_that_breaks_later_ends_with_an_error_event(journal: Path, die: str) -> None:
    async with Upstream(Reply(die=die)) as bad, Upstream() as good, standing(journal, route(bad)) as stand:
        raw = await stand.connect()
        raw.send(request(chat(stream=True)))
        answer = await raw.answer()
        assert (answer.status, answer.cut, answer.text) == (200, False, "t0 t1 t2 ")
        assert answer.events[-1]["error"]["code"] == "stream_broken"
        assert "lost" not in answer.body.decode()
        record = await stand.one_record()
        assert (record.outcome, record.source, record.completion_tokens) == ("engine_failed", "counted", 3)
        # And the connection is good for another request.
        stand.gateway.table.replace(table(route(good), version=2))
        raw.send(request(chat()))
        assert (await raw.answer()).status == 200


async def test_an_error_event_ends_a_stream_even_if_its_engine_goes_on(journal: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    failed = b'data: {"error":{"message":"CUDA error","type":"InternalServerError","code":500}}\n\n'
    pieces = [head, chunk(event("t0 ")), chunk(event("t1 ")), chunk(failed), chunk(event("lost"))]
    async with Upstream(Reply(raw=pieces)) as engine, standing(journal, route(engine)) as stand:
        answer = await stand.post(chat(stream=True))
        assert (answer.status, answer.text) == (200, "t0 t1 ")
        assert "CUDA error" in answer.events[-1]["error"]["message"]
        assert "lost" not in answer.body.decode()
        record = await stand.one_record()
        assert (record.outcome, record.completion_tokens) == ("engine_failed", 2)


async def test_a_connection_that_died_idle_is_replaced_at_once(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        await stand.post(chat())
        assert (engine.connections, len(engine.requests)) == (1, 1)
        await stand.post(chat())
        assert engine.connections == 1
        # The next request meets an engine that closes without an answer, as in a race with its idle time.
        engine.replies.append(Reply(die="at_once"))
        assert (await stand.post(chat())).status == 200
        assert engine.connections == 2
        assert [r.attempts for r in stand.records()] == [1, 1, 1]
        engine.close_idle()
        assert (await stand.post(chat())).status == 200


async def test_idle_connections_are_closed(journal: Path) -> None:
    async with (
        Upstream() as engine,
        standing(journal, route(engine), upstream={"idle_seconds": 0.2}) as stand,
    ):
        await stand.post(chat())
        endpoint = stand.gateway.table.routes()[0].endpoints[0]
        assert len(endpoint.idle) == 1
        await until(lambda: not endpoint.idle)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_lets_the_engine_go(journal: Path, *, stream: bool) -> None:
    reply = Reply(events=3, hold_after=2) if stream else Reply(delay_seconds=30)
    async with Upstream(reply) as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(request(chat(stream=stream)))
        await engine.until("requests", 1)
        if stream:
            while b"t1 " not in await raw.line():
                pass
        raw.abort()
        await engine.until("aborted", 1, seconds=1)
        record = await stand.one_record()
        assert (record.outcome, record.status) == ("client_left", 200 if stream else 499)
        assert (record.source, record.completion_tokens) == ("counted", 2 if stream else 0)
        assert stand.gateway.open_requests == 0
        assert stand.gateway.table.routes()[0].endpoints[0].outstanding == 0


async def test_a_slow_client_slows_the_engine_and_memory_stays(journal: Path) -> None:
    async with Upstream(Reply(events=150_000)) as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.pause()
        raw.send(request(chat(stream=True)))
        await engine.until("sent_events", 1000)
        seen = -1
        async with asyncio.timeout(20):
            while seen != engine.sent_events:
                seen = engine.sent_events
                await asyncio.sleep(0.5)
        assert seen < 130_000
        raw.resume()
        answer = await raw.answer(seconds=60)
        assert answer.body.count(b"\n\n") == 150_000 + 3
        assert (await stand.one_record()).completion_tokens == 150_000


@pytest.mark.parametrize("gather", [0.002, 0])
async def test_a_crowd_of_events_is_passed_on_several_at_a_time(journal: Path, gather: float) -> None:
    count = 3000
    reply = Reply(events=count, interval_seconds=1e-5)  # as fast as the loop goes around
    upstream = {"gather_seconds": gather}
    async with Upstream(reply) as engine, standing(journal, route(engine), upstream=upstream) as stand:
        raw = await stand.connect()
        raw.send(request(chat(stream=True)))
        began, pieces, body = time.monotonic(), 0, b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await asyncio.wait_for(raw.reader.read(65536), 10)
            pieces += 1
        texts = re.findall(rb'"content":"(t[0-9]+) "', body)
        assert texts == [b"t%d" % number for number in range(count)]
        record = await stand.one_record()
        assert (record.outcome, record.completion_tokens) == ("done", count)
        if gather and time.monotonic() - began < count * 0.0005:  # else they were no crowd
            assert pieces < count / 2
        # And the connection is good for another request.
        assert (await stand.post(chat())).status == 200
        assert engine.connections == 1


async def test_an_engine_that_dies_in_a_crowd_of_events(journal: Path) -> None:
    reply = Reply(events=1000, interval_seconds=1e-5, die="mid_event")
    async with Upstream(reply) as engine, standing(journal, route(engine)) as stand:
        answer = await stand.post(chat(stream=True))
        assert answer.text == "".join(f"t{number} " for number in range(1000))
        assert answer.events[-1]["error"]["code"] == "stream_broken"
        assert (await stand.one_record()).completion_tokens == 1000


async def test_a_client_that_leaves_in_a_crowd_of_events(journal: Path) -> None:
    reply = Reply(events=100_000, interval_seconds=1e-5)
    async with Upstream(reply) as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(request(chat(stream=True)))
        await engine.until("sent_events", 500)
        raw.abort()
        await engine.until("aborted", 1)
        record = await stand.one_record()
        assert (record.outcome, record.source) == ("client_left", "counted")
        assert 0 < record.completion_tokens <= engine.sent_events  # a busy gateway is some way behind


async def test_a_client_that_takes_nothing_is_cut(journal: Path) -> None:
    intake = {"client_stall_seconds": 0.5}
    async with (
        Upstream(Reply(events=1_000_000)) as engine,
        standing(journal, route(engine), intake=intake) as stand,
    ):
        raw = await stand.connect()
        raw.pause()
        raw.send(request(chat(stream=True)))
        await engine.until("aborted", 1)
        assert (await stand.one_record()).outcome == "client_left"


async def _held(stand: Stand, engine: Upstream, count: int) -> list[Any]:
    raws: list[Any] = []
    for _ in range(count):
        raw = await stand.connect()
        raw.send(request(chat(stream=True)))
        raws.append(raw)
    await engine.until("requests", count)
    return raws


async def test_slots_and_the_line_for_them(journal: Path) -> None:
    async with (
        Upstream(Reply(hold_after=0)) as engine,
        standing(journal, route(engine, concurrency=2, queue_max=2)) as stand,
    ):
        raws = await _held(stand, engine, 2)
        waiting = [await stand.connect() for _ in range(2)]
        for raw in waiting:
            raw.send(request(chat(stream=True)))
        line = stand.gateway.table.routes()[0].waiting
        await until(lambda: len(line) == 2)
        full = await stand.post(chat())
        assert (full.status, full.error["code"]) == (503, "server_is_overloaded")
        assert int(full.headers["retry-after"]) <= 60
        # Who leaves the line, leaves it; who leaves a slot, gives it on.
        waiting[0].abort()
        await until(lambda: len(line) == 1)
        assert len(engine.requests) == 2
        raws[0].abort()
        await engine.until("requests", 3)
        engine.go.set()
        assert (await waiting[1].answer()).text == "t0 t1 t2 "
        assert (await raws[1].answer()).text == "t0 t1 t2 "
        endpoint = stand.gateway.table.routes()[0].endpoints[0]
        await until(lambda: endpoint.outstanding == 0)
        assert (await stand.post(chat())).status == 200


async def test_waiting_has_an_end(journal: Path) -> None:
    async with (
        Upstream(Reply(hold_after=0)) as engine,
        standing(journal, route(engine, concurrency=1, queue_seconds=0.3)) as stand,
    ):
        await _held(stand, engine, 1)
        late = await stand.post(chat())
        assert (late.status, late.error["code"]) == (503, "server_is_overloaded")
        waiting = await stand.connect()
        waiting.send(request(chat()))
        await until(lambda: len(stand.gateway.table.routes()[0].waiting) == 1)
        stand.gateway.table.replace(table(version=2))
        assert (await waiting.answer()).status == 404
        engine.go.set()


async def test_requests_spread_over_what_is_least_busy(journal: Path) -> None:
    engines = [Upstream(Reply(hold_after=0)) for _ in range(3)]
    for engine in engines:
        await engine.start()
    async with standing(journal, route(*engines)) as stand:
        for _ in range(9):
            raw = await stand.connect()
            raw.send(request(chat(stream=True)))
        await until(lambda: sum(len(e.requests) for e in engines) == 9)
        assert [len(e.requests) for e in engines] == [3, 3, 3]
    for engine in engines:
        await engine.stop()


async def test_a_new_table_leaves_open_streams_alone(journal: Path) -> None:
    async with (
        Upstream(Reply(hold_after=1)) as old,
        Upstream() as new,
        standing(journal, route(old)) as stand,
    ):
        raws = await _held(stand, old, 1)
        stand.gateway.table.replace(table(route(new), version=2))
        assert (await stand.post(chat())).status == 200
        assert len(new.requests) == 1
        old.go.set()
        assert (await raws[0].answer()).text == "t0 t1 t2 "


async def test_an_engine_that_answers_too_slowly_to_connect_is_left(journal: Path) -> None:
    limits = TimeLimits(connect_seconds=0.3)
    # An address that drops packets: documentation's own network.
    async with (
        Upstream() as good,
        standing(journal, route("http://192.0.2.1:9", good, limits=limits)) as stand,
    ):
        for _ in range(4):
            assert (await stand.post(chat())).status == 200
