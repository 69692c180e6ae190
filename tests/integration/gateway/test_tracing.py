"""Spans of traced requests, as a collector gets them, and log lines of requests that failed."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import pytest
from cortex_shared.contracts.routes import TimeLimits
from structlog.testing import capture_logs

from tests.fakes.upstream import PROMPT_TOKENS, Reply, Upstream
from tests.integration.gateway.harness import Stand, chat, request, route, standing, until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


class Span:
    """A span as it arrived."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.name: str = document["name"]
        self.attributes = attributes(document["attributes"])
        self.events = [(event["name"], attributes(event["attributes"])) for event in document["events"]]
        self.status = cast("dict[str, Any]", document["status"])


def attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """OTLP's list of pairs as a dictionary."""
    found: dict[str, Any] = {}
    for pair in pairs:
        ((kind, value),) = pair["value"].items()
        found[pair["key"]] = int(value) if kind == "intValue" else value
    return found


def spans(collector: Upstream) -> list[Span]:
    """All that arrived."""
    found: list[Span] = []
    for sent in collector.requests:
        assert sent.path == "/v1/traces"
        assert sent.headers["content-type"] == "application/json"
        for resource in sent.body["resourceSpans"]:
            assert attributes(resource["resource"]["attributes"])["service.name"] == "cortex-gateway"
            for scope in resource["scopeSpans"]:
                found += [Span(document) for document in scope["spans"]]
    return found


async def some_spans(collector: Upstream, count: int) -> list[Span]:
    """The spans, once so many have arrived."""
    await until(lambda: len(spans(collector)) >= count, 30)
    return spans(collector)


def to(collector: Upstream | str, **fields: Any) -> dict[str, Any]:
    """Settings that send spans to a collector at once."""
    endpoint = collector if isinstance(collector, str) else collector.url
    return {"otlp_endpoint": endpoint, "flush_seconds": 0.01, **fields}


def accepting() -> Upstream:
    """A collector that takes everything."""
    return Upstream(Reply(body=b"{}"))


async def test_a_traced_stream(journal: Path) -> None:
    async with (
        accepting() as collector,
        Upstream() as engine,
        standing(journal, route(engine, aliases=["alias"]), trace=to(collector)) as stand,
    ):
        await stand.post({**chat(stream=True), "model": "alias"}, traceparent=SAMPLED, tracestate="a=1")
        (span,) = await some_spans(collector, 1)
        assert span.name == "chat m"
        assert span.document["traceId"] == TRACE
        assert span.document["parentSpanId"] == PARENT
        assert span.document["traceState"] == "a=1"
        assert (span.status, span.events) == ({}, [])
        seen = engine.requests[0].headers
        assert seen["traceparent"] == f"00-{TRACE}-{span.document['spanId']}-01"
        assert seen["tracestate"] == "a=1"
        expected = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "vllm",
            "gen_ai.request.model": "alias",
            "gen_ai.request.stream": True,
            "gen_ai.usage.input_tokens": PROMPT_TOKENS,
            "gen_ai.usage.output_tokens": 3,
            "gen_ai.usage.cache_read.input_tokens": 2,
            "http.response.status_code": 200,
            "url.path": "/v1/chat/completions",
            "server.address": "127.0.0.1",
            "server.port": engine.port,
            "cortex.request.id": stand.records()[0].request_id,
            "cortex.route": "m",
            "cortex.instance": "i0",
            "cortex.key.name": "test",
            "cortex.outcome": "done",
            "cortex.attempts": 1,
        }
        assert {key: span.attributes.get(key) for key in expected} == expected
        assert span.attributes["gen_ai.response.time_to_first_chunk"] >= 0
        assert "error.type" not in span.attributes


async def test_a_head_that_came_before_is_traced_too(journal: Path) -> None:
    async with (
        accepting() as collector,
        Upstream() as engine,
        standing(journal, route(engine), trace=to(collector)) as stand,
    ):
        raw = await stand.connect()
        for parent in ("", SAMPLED, "", SAMPLED):
            raw.send(request(chat(), traceparent=parent))
            assert (await raw.answer()).status == 200
        assert ["traceparent" in sent.headers for sent in engine.requests] == [False, True, False, True]
        assert len(await some_spans(collector, 2)) == 2


async def test_chance_traces_who_does_not_ask(journal: Path) -> None:
    async with (
        accepting() as collector,
        Upstream() as engine,
        standing(journal, route(engine), trace=to(collector, sample_share=1)) as stand,
    ):
        for _ in range(2):
            await stand.post(chat())
        found = await some_spans(collector, 2)
        assert len({span.document["traceId"] for span in found}) == 2
        assert all("parentSpanId" not in span.document for span in found)
        for span, sent in zip(found, engine.requests, strict=True):
            parent = f"00-{span.document['traceId']}-{span.document['spanId']}-01"
            assert sent.headers["traceparent"] == parent


async def test_what_is_no_context_does_not_reach_an_engine(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        for parent in ("nonsense", SAMPLED.upper(), ""):
            assert (await stand.post(chat(), traceparent=parent, tracestate="a=1")).status == 200
        assert not any({"traceparent", "tracestate"} & set(sent.headers) for sent in engine.requests)


async def test_attempts_are_events_and_failures_are_told(journal: Path) -> None:
    async with (
        accepting() as collector,
        Upstream() as good,
        Upstream(Reply(status=500)) as bad,
        standing(
            journal,
            route("http://127.0.0.1:1", bad),
            route(good, name="good"),
            trace=to(collector),
            upstream={"retry_burst": 100},
        ) as stand,
    ):
        assert (await stand.post(chat(), traceparent=SAMPLED)).status in (500, 502)
        (span,) = await some_spans(collector, 1)
        assert span.attributes["cortex.attempts"] == 2
        assert [name for name, _ in span.events] == ["attempt failed"] * 2
        failed = {(told["cortex.instance"], told["error.type"]) for _, told in span.events}
        assert failed == {("i0", "engine_unreachable"), ("i1", "500")}
        assert span.attributes["error.type"] in ("engine_unreachable", "500")
        assert span.status == {"code": 2, "message": span.attributes["error.type"]}

        await stand.post({**chat(), "model": "good"})
        good.replies.append(Reply(die="at_once"))
        await stand.post({**chat(), "model": "good"}, traceparent=SAMPLED)
        span = (await some_spans(collector, 2))[1]
        assert [name for name, _ in span.events] == ["resent"]
        assert span.status == {}


async def test_who_is_refused_or_leaves_has_a_span_that_did_not_fail(journal: Path) -> None:
    async with (
        accepting() as collector,
        Upstream(Reply(hold_after=1)) as engine,
        standing(journal, route(engine), trace=to(collector)) as stand,
    ):
        await stand.post({**chat(), "model": "none"}, traceparent=SAMPLED)
        (span,) = await some_spans(collector, 1)
        assert (span.name, span.attributes["error.type"]) == ("chat", "model_not_found")
        assert (span.attributes["http.response.status_code"], span.status) == (404, {})
        raw = await stand.connect()
        raw.send(request(chat(stream=True), traceparent=SAMPLED))
        while b"t0 " not in await raw.line():
            pass
        raw.abort()
        span = (await some_spans(collector, 2))[1]
        assert (span.attributes["error.type"], span.status) == ("client_left", {})


async def test_spans_travel_in_batches_and_the_last_leave_before_the_gateway_does(journal: Path) -> None:
    async with accepting() as collector, Upstream() as engine:
        trace = to(collector, batch_max_spans=10, flush_seconds=60)
        async with standing(journal, route(engine), trace=trace) as stand:
            raw = await stand.connect()
            for _ in range(25):
                raw.send(request(chat(), traceparent=SAMPLED))
                await raw.answer()
            assert len(await some_spans(collector, 20)) == 20
            assert len(collector.requests) == 2
        assert len(spans(collector)) == 25
        assert [stand.gateway.tracer.sender.sent, stand.gateway.tracer.sender.dropped] == [25, 0]


async def test_a_collector_that_is_away_costs_nothing_but_spans(journal: Path) -> None:
    async with (
        accepting() as collector,
        Upstream() as engine,
        standing(journal, route(engine), trace=to(collector, queue_max_spans=5)) as stand,
    ):
        await collector.stop()
        sender = stand.gateway.tracer.sender
        for _ in range(8):
            assert (await stand.post(chat(), traceparent=SAMPLED)).status == 200
        assert sender.dropped == 3
        page = (await stand.get("/metrics")).body.decode()
        assert 'cortex_gateway_spans_total{result="dropped"} 3.0' in page
        assert "cortex_gateway_waiting_spans 5.0" in page
        await collector.start()
        assert len(await some_spans(collector, 5)) == 5
        await until(lambda: sender.sent == 5)


@pytest.mark.parametrize(
    ("reply", "dropped"),
    [
        (Reply(status=400, body=b"{}"), 1),
        (Reply(body=b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"no"}}'), 1),
        (Reply(body=b'{"partialSuccess":{"errorMessage":"only a warning"}}'), 0),
        (Reply(body=b"not JSON"), 0),
    ],
)
async def test_what_a_collector_does_not_want_is_not_sent_again(
    journal: Path, reply: Reply, dropped: int
) -> None:
    async with (
        Upstream(reply) as collector,
        Upstream() as engine,
        standing(journal, route(engine), trace=to(collector)) as stand,
    ):
        sender = stand.gateway.tracer.sender
        await stand.post(chat(), traceparent=SAMPLED)
        await until(lambda: sender.sent + sender.dropped == 1)
        assert sender.dropped == dropped
        assert len(collector.requests) == 1


async def test_a_collector_that_is_full_is_asked_again(journal: Path) -> None:
    async with (
        accepting() as collector,
        Upstream() as engine,
        standing(
            journal,
            route(engine),
            trace=to(f"{collector.url}/v1/traces", otlp_headers={"x-key": "secret"}),
        ) as stand,
    ):
        collector.replies.append(Reply(status=503, body=b"{}", headers={"retry-after": "1"}))
        await stand.post(chat(), traceparent=SAMPLED)
        await until(lambda: stand.gateway.tracer.sender.sent == 1)
        assert len(collector.requests) == 2
        assert collector.requests[0].headers["x-key"] == "secret"
        assert collector.requests[0].raw_body == collector.requests[1].raw_body


async def test_a_whole_answer_says_what_the_gateway_took_of_its_time(journal: Path) -> None:
    async with Upstream(Reply(delay_seconds=1)) as engine, standing(journal, route(engine)) as stand:
        for _ in range(2):
            answer = await stand.post(chat())
            assert 0 < int(answer.headers["x-cortex-overhead-us"]) < 1_000_000


@pytest.fixture
def lines() -> Generator[list[dict[str, Any]]]:
    """The access log's lines from here on."""
    with capture_logs() as caught:
        yield cast("list[dict[str, Any]]", caught)


def said(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are about requests."""
    return [line for line in lines if line["event"].startswith("request.")]


async def _some_of_each(stand: Stand, engine: Upstream) -> None:
    assert (await stand.post(chat(stream=True))).status == 200
    assert (await stand.post(chat(), authorization="Bearer no")).status == 401
    engine.replies.append(Reply(status=400))
    assert (await stand.post(chat())).status == 400
    engine.replies.append(Reply(die="mid_stream"))
    assert (await stand.post(chat(stream=True), x_request_id="mine")).status == 200
    engine.replies.append(Reply(delay_seconds=30))
    assert (await stand.post({**chat(stream=True), "model": "hasty"})).status == 504


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        ("off", []),
        ("errors", [(502, "stream_broken"), (504, "engine_timeout")]),
        (
            "all",
            [
                (200, None),
                (401, "invalid_api_key"),
                (400, "400"),
                (502, "stream_broken"),
                (504, "engine_timeout"),
            ],
        ),
    ],
)
async def test_requests_in_the_log(
    journal: Path, lines: list[dict[str, Any]], access: str, expected: list[tuple[int, str | None]]
) -> None:
    limits = TimeLimits(first_token_seconds=0.3)
    async with (
        Upstream() as engine,
        standing(
            journal, route(engine), route(engine, name="hasty", limits=limits), log={"access": access}
        ) as stand,
    ):
        await _some_of_each(stand, engine)
        found = said(lines)
        assert [(line["status"], line["error"]) for line in found] == expected
        if expected:
            broken = next(line for line in found if line["error"] == "stream_broken")
            assert (broken["shown"], broken["route"], broken["instance"]) == ("mine", "m", "i0")
            assert broken["completion_tokens"] == 3
        assert "sk-" not in json.dumps(found)


async def test_a_storm_of_failures_does_not_fill_the_log(journal: Path, lines: list[dict[str, Any]]) -> None:
    log = {"access": "errors", "access_per_second_max": 2}
    async with standing(journal, route(state="loading"), log=log) as stand:
        # The second is the test's own, which no clock hurries.
        now = [100.0]
        stand.gateway.access._time = lambda: now[0]  # pyright: ignore[reportPrivateUsage] # a clock
        for _ in range(5):
            await stand.post(chat())
        assert len(said(lines)) == 2
        now[0] += 1
        await stand.post(chat())
        assert [line.get("lines_left_out") for line in said(lines)] == [None, None, 3]
