"""Other models than the one asked for: fallbacks before any content, shares that stay with their sessions."""

from pathlib import Path
from typing import Any

import pytest
from cortex_shared.contracts.routes import Split

from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.harness import chat, request, route, standing, until

_NOBODY = "http://127.0.0.1:1"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_served_is_served_by_another_model(journal: Path, stream: bool) -> None:
    async with (
        Upstream() as engine,
        standing(
            journal, route(_NOBODY, name="m", fallbacks=["gone", "spare"]), route(engine, name="spare")
        ) as stand,
    ):
        answer = await stand.post(chat(stream=stream))
        assert (answer.status, answer.headers["x-cortex-model"]) == (200, "spare")
        assert engine.requests[0].body["model"] == "spare"
        record = await stand.one_record()
        assert (record.route, record.outcome, record.completion_tokens) == ("spare", "done", 3)
        assert [each.stats.in_flight for each in stand.gateway.table.routes()] == [0, 0]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=500),
        Reply(status=429),
        Reply(status=503),
        Reply(die="at_once"),
        Reply(die="before_content"),
        Reply(error_event=b'data: {"error":{"message":"x","code":500}}\n\n'),
    ],
    ids=["500", "429", "503", "dies", "dies before content", "error event"],
)
async def test_failures_before_content_fall_back(journal: Path, reply: Reply) -> None:
    async with (
        Upstream(reply) as broken,
        Upstream() as engine,
        standing(journal, route(broken, fallbacks=["spare"]), route(engine, name="spare")) as stand,
    ):
        answer = await stand.post(chat(stream=True))
        assert (answer.text, answer.headers["x-cortex-model"]) == ("t0 t1 t2 ", "spare")
        assert (await stand.one_record()).route == "spare"
        endpoint = stand.gateway.table.routes()[0].endpoints[0]
        assert endpoint.outstanding == 0


async def test_after_content_and_for_what_the_client_did_wrong_nothing_falls_back(journal: Path) -> None:
    async with (
        Upstream(Reply(die="mid_stream")) as broken,
        Upstream() as engine,
        standing(journal, route(broken, fallbacks=["spare"]), route(engine, name="spare")) as stand,
    ):
        answer = await stand.post(chat(stream=True))
        assert answer.events[-1]["error"]["code"] == "stream_broken"
        broken.reply = Reply(status=400)
        assert (await stand.post(chat())).status == 400
        assert not engine.requests


async def test_a_full_line_falls_back_and_the_last_error_is_told(journal: Path) -> None:
    async with (
        Upstream(Reply(hold_after=0)) as busy,
        Upstream(Reply(status=500)) as spare,
        standing(
            journal, route(busy, concurrency=1, queue_max=0, fallbacks=["spare"]), route(spare, name="spare")
        ) as stand,
    ):
        raw = await stand.connect()
        raw.send(request(chat(stream=True)))
        await busy.until("requests", 1)
        answer = await stand.post(chat())
        assert answer.status == 500
        assert len(spare.requests) == 1
        spare.reply = Reply()
        assert (await stand.post(chat())).status == 200
        busy.go.set()
        assert (await raw.answer()).status == 200


async def test_two_models_that_name_each_other_end(journal: Path) -> None:
    async with standing(
        journal,
        route(_NOBODY, name="m", fallbacks=["n", "m", "n"]),
        route("http://127.0.0.1:2", name="n", fallbacks=["m"]),
    ) as stand:
        answer = await stand.post(chat())
        assert answer.status == 502
        await until(lambda: all(each.stats.in_flight == 0 for each in stand.gateway.table.routes()))


async def test_a_share_stays_with_its_session(journal: Path) -> None:
    async with (
        Upstream() as old,
        Upstream() as new,
        standing(journal, route(old, splits=[Split(to="new", share=0.3)]), route(new, name="new")) as stand,
    ):
        homes: dict[str, set[Any]] = {}
        for _ in range(2):
            for number in range(60):
                answer = await stand.post(chat(), x_session_id=f"s{number}")
                homes.setdefault(f"s{number}", set()).add(answer.headers.get("x-cortex-model"))
        assert all(len(seen) == 1 for seen in homes.values())
        moved = sum(seen == {"new"} for seen in homes.values())
        assert 5 < moved < 35
        assert len(new.requests) == 2 * moved
        for _ in range(100):
            await stand.post(chat())
        assert 5 < len(new.requests) - 2 * moved < 70  # without a session: of requests


async def test_a_share_of_a_model_that_is_not_there_stays(journal: Path) -> None:
    async with (
        Upstream() as old,
        standing(journal, route(old, splits=[Split(to="new", share=1)]), route(name="new")) as stand,
    ):
        assert (await stand.post(chat())).status == 200
        assert len(old.requests) == 1


async def test_who_says_how_long_it_waits_is_not_served_longer(journal: Path) -> None:
    async with (
        Upstream(Reply(delay_seconds=30)) as engine,
        standing(journal, route(engine)) as stand,
    ):
        for header in ("x_stainless_read_timeout", "x_stainless_timeout"):
            answer = await stand.post(chat(), **{header: "0.3"})
            assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
        await engine.until("aborted", 2)
        for odd in ("nan", "-1", "soon", "inf"):
            engine.reply = Reply()
            assert (await stand.post(chat(), x_stainless_read_timeout=odd)).status == 200
