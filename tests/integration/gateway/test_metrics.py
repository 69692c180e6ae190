"""What /metrics says: each count moves when it should, nothing stays up, and no series stays for ever."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cortex_gateway import families
from cortex_shared.contracts.routes import TimeLimits
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.upstream import PROMPT_TOKENS, Reply, Upstream
from tests.integration.gateway.harness import Stand, chat, request, route, standing, table, until

GEN_AI = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "vllm", "gen_ai_request_model": "m"}


class Page:
    """What was read from /metrics."""

    def __init__(self, text: str) -> None:
        self.series: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.series, f"{sample} is there twice"
                self.series[key] = sample.value

    def value(self, name: str, **labels: str) -> float:
        """The value of one series."""
        return self.series[name, frozenset(labels.items())]

    def of_routes(self) -> set[str]:
        """The routes and endpoints of which anything is said."""
        names = ("route", "gen_ai_request_model", "instance")
        return {value for _, labels in self.series for label, value in labels if label in names}


async def read(stand: Stand) -> Page:
    """The page now."""
    answer = await stand.get("/metrics")
    assert answer.status == 200
    return Page(answer.body.decode())


async def test_a_stream_is_counted_by_the_conventions_names(journal: Path) -> None:
    async with (
        Upstream(Reply(events=4, interval_seconds=0.02)) as engine,
        standing(journal, route(engine, aliases=["alias"])) as stand,
    ):
        await stand.post(chat(stream=True))
        await stand.post({**chat(stream=True), "model": "alias"})
        page = await read(stand)
        for name in ("time_to_first_token", "time_per_output_token"):
            assert page.value(f"gen_ai_server_{name}_seconds_count", **GEN_AI) == 2
        per_token = page.value("gen_ai_server_time_per_output_token_seconds_sum", **GEN_AI) / 2
        assert 0.015 < per_token < 1
        assert page.value("gen_ai_server_request_duration_seconds_count", **GEN_AI, error_type="") == 2
        for kind, tokens in (("input", PROMPT_TOKENS), ("output", 4)):
            labels = {**GEN_AI, "gen_ai_token_type": kind}
            assert page.value("gen_ai_client_token_usage_sum", **labels) == 2 * tokens
            assert page.value("gen_ai_client_token_usage_bucket", **labels, le="4.0") == 2 * (
                kind == "output"
            )
        assert page.value("cortex_gateway_requests_total", route="m", status="200", outcome="done") == 2
        for kind, tokens in (("prompt", PROMPT_TOKENS), ("completion", 4), ("cached", 2)):
            assert page.value("cortex_gateway_tokens_total", route="m", kind=kind) == 2 * tokens


async def test_other_operations_and_names_that_nobody_knows(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        await stand.post({"model": "m", "prompt": "x"}, "/v1/completions")
        await stand.post({"model": "m", "input": "x"}, "/v1/embeddings")
        assert (await stand.post({**chat(), "model": "what a client makes up"})).status == 404
        page = await read(stand)
        duration = "gen_ai_server_request_duration_seconds_count"
        for operation in ("text_completion", "embeddings"):
            assert page.value(duration, **{**GEN_AI, "gen_ai_operation_name": operation}, error_type="") == 1
        assert page.of_routes() == {"m", "i0"}


async def test_time_in_the_gateways_own_hands(journal: Path) -> None:
    # A slow engine is not the gateway's doing; the first request waits for a connection besides.
    async with Upstream(Reply(delay_seconds=1)) as engine, standing(journal, route(engine)) as stand:
        for _ in range(2):
            await stand.post(chat())
        engine.reply = Reply(status=500)  # an answer that is not passed on
        await stand.post(chat())
        page = await read(stand)
        name = "cortex_gateway_overhead_seconds"
        for side, count in (("request", 2), ("answer", 2)):
            assert page.value(f"{name}_count", route="m", side=side) == count
            assert 0 < page.value(f"{name}_sum", route="m", side=side) < 1


async def test_refusals_are_counted_by_their_reason(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        await stand.post(chat(), authorization="Bearer no")
        await stand.post({**chat(), "model": "none"})
        await stand.post({"messages": []})
        await stand.get("/v1/nothing")
        await stand.get("/v1/chat/completions")
        raw = await stand.connect()
        raw.send(b"nonsense\r\n\r\n")
        assert (await raw.answer()).status == 400
        page = await read(stand)
        refused = {
            (dict(labels)["status"], dict(labels)["code"]): value
            for (name, labels), value in page.series.items()
            if name == "cortex_gateway_refused_requests_total"
        }
        assert refused == {
            ("401", "invalid_api_key"): 1,
            ("404", "model_not_found"): 1,
            ("400", "invalid_request_error"): 2,
            ("404", "unknown_url"): 1,
            ("405", "method_not_allowed"): 1,
        }


async def test_retries_resends_and_what_endpoints_did(journal: Path) -> None:
    async with Upstream() as good, Upstream() as bad, standing(journal, route(good, bad)) as stand:
        await bad.stop()
        while not stand.gateway.table.routes()[0].stats.retries:
            assert (await stand.post(chat())).status == 200
        served = len(good.requests)
        page = await read(stand)
        assert page.value("cortex_gateway_retries_total", route="m") == 1
        requests = "cortex_gateway_endpoint_requests_total"
        assert page.value(requests, instance="i0", route="m", result="success") == served
        assert page.value(requests, instance="i1", route="m", result="connect_failure") == 1
        assert page.value("cortex_gateway_endpoint_ejections_total", instance="i1", route="m") == 1
        assert state(page, "i0") == "closed"
        assert state(page, "i1") in ("open", "half_open")

        # The next request is the probe of what has come back.
        await bad.start()
        endpoint = stand.gateway.table.routes()[0].endpoints[1]
        endpoint.ejected_until = 0.0
        assert state(await read(stand), "i1") == "half_open"
        while not bad.requests:
            assert (await stand.post(chat())).status == 200
        assert state(await read(stand), "i1") == "closed"

        good.replies.append(Reply(die="at_once"))
        while good.replies:
            assert (await stand.post(chat())).status == 200
        page = await read(stand)
        assert page.value("cortex_gateway_resends_total", route="m") == 1
        assert page.value("cortex_gateway_retries_total", route="m") == 1


def state(page: Page, instance: str) -> str:
    """The one state that the breaker of an endpoint is in."""
    name = "cortex_gateway_endpoint_state"
    states = ("closed", "half_open", "open")
    found = [s for s in states if page.value(name, instance=instance, route="m", state=s) == 1]
    assert len(found) == 1
    return found[0]


async def test_the_line_and_how_long_it_took(journal: Path) -> None:
    async with (
        Upstream(Reply(hold_after=0)) as engine,
        standing(journal, route(engine, concurrency=1)) as stand,
    ):
        raws = [await stand.connect() for _ in range(3)]
        for raw in raws:
            raw.send(request(chat(stream=True)))
        line = stand.gateway.table.routes()[0].waiting
        await until(lambda: len(line) == 2)
        page = await read(stand)
        assert page.value("cortex_gateway_in_flight_requests", route="m") == 3
        assert page.value("cortex_gateway_waiting_requests", route="m") == 2
        assert page.value("cortex_gateway_endpoint_outstanding_requests", route="m", instance="i0") == 1
        raws[2].abort()
        await until(lambda: len(line) == 1)
        engine.go.set()
        assert (await raws[1].answer()).status == 200
        page = await read(stand)
        assert page.value("cortex_gateway_queue_seconds_count", route="m") == 2
        assert page.value("cortex_gateway_waiting_requests", route="m") == 0


async def _posts(stand: Stand, engine: Upstream, *, stream: bool = True) -> None:
    await stand.post(chat(stream=stream))


async def _leaves(stand: Stand, engine: Upstream) -> None:
    raw = await stand.connect()
    raw.send(request(chat(stream=True)))
    while b"t0 " not in await raw.line():
        pass
    raw.abort()
    await engine.until("aborted", 1)


async def _leaves_the_line(stand: Stand, engine: Upstream) -> None:
    raws = [await stand.connect() for _ in range(2)]
    for raw in raws:
        raw.send(request(chat(stream=True)))
    await until(lambda: len(stand.gateway.table.routes()[0].waiting) == 1)
    raws[1].abort()
    await until(lambda: not stand.gateway.table.routes()[0].waiting)
    engine.go.set()
    await raws[0].answer()


async def _unrouted(stand: Stand, engine: Upstream) -> None:
    raws = [await stand.connect() for _ in range(2)]
    for raw in raws:
        raw.send(request(chat(stream=True)))
    await until(lambda: len(stand.gateway.table.routes()[0].waiting) == 1)
    kept = stand.gateway.table.routes()[0].stats
    stand.gateway.table.replace(table(version=2))
    assert (await raws[1].answer()).status == 404
    engine.go.set()
    await raws[0].answer()
    assert (kept.in_flight, kept.waiting) == (0, 0)


async def _is_cut(stand: Stand, engine: Upstream) -> None:
    raw = await stand.connect()
    raw.send(request(chat(stream=True)))
    await engine.until("requests", 1)
    stand.gateway.drain(0)
    await raw.answer()


ENDINGS: dict[str, tuple[Reply, Callable[[Stand, Upstream], Awaitable[None]], str]] = {
    "answered": (Reply(), _posts, ""),
    "refused by the engine": (Reply(status=400), _posts, "400"),
    "refused by a full engine": (Reply(status=503), _posts, "server_is_overloaded"),
    "engine fails": (Reply(status=500), _posts, "500"),
    "dies before": (Reply(die="before_content"), _posts, "engine_unreachable"),
    "dies within": (Reply(die="mid_stream"), _posts, "stream_broken"),
    "error event": (Reply(error_event=b'data: {"error":{"code":"made up"}}\n\n'), _posts, "500"),
    "too late": (Reply(delay_seconds=30), _posts, "engine_timeout"),
    "stalls": (Reply(hold_after=1), _posts, "engine_timeout"),
    "client leaves": (Reply(hold_after=1), _leaves, "client_left"),
    "client leaves the line": (Reply(hold_after=0), _leaves_the_line, "client_left"),
    "route goes": (Reply(hold_after=0), _unrouted, "model_not_found"),
    "gateway stops": (Reply(hold_after=0), _is_cut, "gateway_stopping"),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_however_it_ends_nothing_stays_up(journal: Path, ending: str) -> None:
    reply, act, error = ENDINGS[ending]
    limits = TimeLimits(first_token_seconds=0.3, idle_seconds=0.3) if error == "engine_timeout" else None
    async with (
        Upstream(reply) as engine,
        standing(journal, route(engine, concurrency=1, limits=limits)) as stand,
    ):
        counts = stand.gateway.stats.route("m")
        endpoint = stand.gateway.table.routes()[0].endpoints[0]
        await act(stand, engine)
        await until(lambda: not counts.in_flight)
        assert (counts.waiting, endpoint.outstanding, stand.gateway.open_requests) == (0, 0, 0)
        seen = counts.operations["chat"]
        # Of "route goes" and of the line's, the other request was answered.
        assert set(seen.failed) == ({error} if error else set())
        assert any(seen.duration.values()) is (not error or act in (_unrouted, _leaves_the_line))


async def test_what_engines_make_up_has_a_bound(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        for number in range(100):
            engine.reply = Reply(status=400, body=b'{"error":{"message":"no","code":"c%d"}}' % number)
            assert (await stand.post(chat())).error["code"] == f"c{number}"
        counts = stand.gateway.stats.route("m")
        assert set(counts.operations["chat"].failed) == {"400"}


async def test_series_go_with_their_routes_and_endpoints(journal: Path) -> None:
    async with Upstream() as first, Upstream() as second, standing(journal, route(first)) as stand:
        sizes: list[int] = []
        for number in range(30):
            engine = (first, second)[number % 2]
            passing = route(engine, name=f"passing-{number}")
            stand.gateway.table.replace(table(route(engine), passing, version=number + 2))
            await stand.post(chat())
            await stand.post({**chat(), "model": f"passing-{number}"})
            page = await read(stand)
            assert page.of_routes() == {"m", f"passing-{number}", "i0", *([""] if number else [])}
            sizes.append(len(page.series))
        assert sizes[2:] == sizes[2:3] * 28
        page = await read(stand)
        # The counts of endpoints that left are in one series: none is lost, and none is there twice.
        requests = "cortex_gateway_endpoint_requests_total"
        left, now = (page.value(requests, instance=i, route="m", result="success") for i in ("", "i0"))
        assert (left, now) == (29, 1)


async def test_an_endpoint_that_leaves_is_shown_while_it_has_requests(journal: Path) -> None:
    async with Upstream(Reply(hold_after=1)) as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(request(chat(stream=True)))
        await engine.until("requests", 1)
        stand.gateway.table.replace(table(route("http://127.0.0.1:1"), version=2))
        outstanding = "cortex_gateway_endpoint_outstanding_requests"
        assert (await read(stand)).value(outstanding, instance="i0", route="m") == 1
        engine.go.set()
        await raw.answer()
        page = await read(stand)
        assert page.value(outstanding, instance="i0", route="m") == 0
        requests = "cortex_gateway_endpoint_requests_total"
        assert page.value(requests, instance="", route="m", result="success") == 1


async def test_told_evidence_is_not_lost_to_the_counts(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        endpoint = stand.gateway.table.routes()[0].endpoints[0]
        for _ in range(2):
            await stand.post(chat())
            endpoint.tell()
        page = await read(stand)
        requests = "cortex_gateway_endpoint_requests_total"
        assert page.value(requests, instance="i0", route="m", result="success") == 2


async def test_the_process_and_its_loop(journal: Path) -> None:
    async with standing(journal) as stand:
        raw = await stand.connect()  # something to look after, so that the sweeper runs
        page = await read(stand)
        assert page.value("cortex_gateway_connections") == 2
        assert page.value("process_resident_memory_bytes") > 1_000_000
        builds = [labels for name, labels in page.series if name == "cortex_gateway_build_info"]
        assert [{label for label, _ in labels} for labels in builds] == [{"form", "version", "python"}]
        asyncio.get_running_loop().call_later(0.1, block, 0.6)
        await until(lambda: stand.gateway.sweeper.lag_max() > 0.2)
        assert (await read(stand)).value("cortex_gateway_loop_lag_max_seconds") > 0.2
        raw.close()


def block(seconds: float) -> None:
    """Hold the event loop."""
    time.sleep(seconds)


async def test_who_has_counts_of_its_own_is_asked(journal: Path) -> None:
    async with standing(journal) as stand:
        mine = families.counter("cortex_gateway_mine", "Mine.", "route")
        mine.add(("m",), 5)
        stand.gateway.metric_sources.append(lambda: [mine])
        assert (await read(stand)).value("cortex_gateway_mine_total", route="m") == 5


async def test_the_documentation_lists_every_metric_and_no_other(journal: Path) -> None:
    text = (Path(__file__).parents[3] / "docs/gateway.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`((?:gen_ai|cortex_gateway|process)_\w+)`", row)}
    async with standing(journal) as stand:
        shown = {
            f"{family.name}_total" if family.kind == "counter" else family.name
            for family in stand.gateway.snapshot()
        }
    # The one that is missing here is of a gateway that stands alone.
    assert listed - {"cortex_gateway_usage_dropped_records_total"} == shown


async def test_two_processes_make_one_page(journal: Path) -> None:
    async with (
        Upstream() as engine,
        standing(journal / "a", route(engine)) as one,
        standing(journal / "b", route(engine)) as two,
    ):
        for stand in (one, two, two):
            await stand.post(chat(stream=True))
        sent = [families.encode(stand.gateway.snapshot()) for stand in (one, two)]
        merged = families.merge(families.decode(data) for data in sent)
        page = Page(families.render(merged).decode())
        assert page.value("cortex_gateway_requests_total", route="m", status="200", outcome="done") == 3
        assert page.value("gen_ai_server_time_to_first_token_seconds_count", **GEN_AI) == 3
        requests = "cortex_gateway_endpoint_requests_total"
        assert page.value(requests, instance="i0", route="m", result="success") == 3
