"""Which engine gets a request, through the whole gateway: by prompt, by session, in turn."""

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.harness import Stand, chat, request, route, standing, table, until


async def engines(stack: AsyncExitStack, count: int, reply: Reply | None = None) -> list[Upstream]:
    return [await stack.enter_async_context(Upstream(reply)) for _ in range(count)]


def conversation(name: str, turns: int, system: str = "") -> dict[str, Any]:
    """A chat of so many turns, a kilobyte each."""
    messages = [{"role": "system", "content": system}] if system else []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"{name}, {turn}: {'words ' * 160}"})
        messages.append({"role": "assistant", "content": "t0 t1 t2 "})
    return chat(stream=True, messages=messages[:-1])


def where(found: list[Upstream], before: list[int]) -> int:
    """Which engine has more requests than before."""
    return next(n for n, e in enumerate(found) if len(e.requests) > before[n])


async def sent(stand: Stand, found: list[Upstream], body: dict[str, Any], **headers: str) -> int:
    """Send it; the number of the engine that got it."""
    before = [len(e.requests) for e in found]
    assert (await stand.post(body, **headers)).status == 200
    return where(found, before)


def prefill(stand: Stand) -> list[int]:
    return [e.prefill_bytes for e in stand.gateway.table.routes()[0].endpoints]


async def test_turns_of_a_conversation_go_to_one_engine(journal: Path) -> None:
    async with AsyncExitStack() as stack:
        found = await engines(stack, 4)
        stand = await stack.enter_async_context(standing(journal, route(*found, balance="prefix")))
        for name in "abcdef":
            homes = {await sent(stand, found, conversation(name, turns)) for turns in range(1, 6)}
            assert len(homes) == 1
        assert prefill(stand) == [0, 0, 0, 0]


async def test_conversations_at_the_same_time_spread(journal: Path) -> None:
    async with AsyncExitStack() as stack:
        found = await engines(stack, 4, Reply(delay_seconds=0.2))
        stand = await stack.enter_async_context(standing(journal, route(*found, balance="prefix")))
        async with asyncio.TaskGroup() as group:
            for n in range(16):
                group.create_task(stand.post(conversation(f"c{n}", 2)))
        assert all(2 <= len(engine.requests) <= 6 for engine in found)


@pytest.mark.parametrize("die", ["at_once", "before_content", "mid_stream"])
async def test_what_is_to_be_read_is_given_back_however_it_ends(journal: Path, die: str) -> None:
    async with AsyncExitStack() as stack:
        found = await engines(stack, 2, Reply(die=die))
        stand = await stack.enter_async_context(standing(journal, route(*found, balance="prefix")))
        for turns in range(1, 5):
            await stand.post(conversation("a", turns))
        assert prefill(stand) == [0, 0]


async def test_what_is_to_be_read_counts_until_the_first_token(journal: Path) -> None:
    async with (
        Upstream(Reply(events=4, hold_after=2)) as engine,
        standing(journal, route(engine, "http://127.0.0.1:1", balance="prefix")) as stand,
    ):
        endpoint = stand.gateway.table.routes()[0].endpoints[0]
        stand.gateway.table.routes()[0].endpoints[1].ejected_until = float("inf")
        stand.gateway.table.routes()[0].endpoints[1].failures = 1
        raw = await stand.connect()
        raw.send(request(conversation("a", 2)))
        await engine.until("requests", 1)
        assert endpoint.prefill_bytes > 2000
        while b"t0 " not in await raw.line():
            pass
        assert (endpoint.prefill_bytes, endpoint.outstanding) == (0, 1)
        engine.go.set()
        await until(lambda: endpoint.outstanding == 0)


async def test_a_client_that_leaves_takes_its_prompt_along(journal: Path) -> None:
    async with (
        Upstream(Reply(delay_seconds=30)) as one,
        Upstream(Reply(delay_seconds=30)) as two,
        standing(journal, route(one, two, balance="prefix")) as stand,
    ):
        raw = await stand.connect()
        raw.send(request(conversation("a", 2)))
        await until(lambda: len(one.requests) + len(two.requests) == 1)
        assert sum(prefill(stand)) > 2000
        raw.abort()
        await until(lambda: prefill(stand) == [0, 0])


async def test_who_waited_in_line_is_remembered_where_it_went(journal: Path) -> None:
    async with AsyncExitStack() as stack:
        found = await engines(stack, 2)
        stand = await stack.enter_async_context(
            standing(journal, route(*found, balance="prefix", concurrency=1))
        )
        routed = stand.gateway.table.routes()[0]
        home = await sent(stand, found, conversation("a", 4))
        away = found[1 - home]
        for n, engine in enumerate(found):
            engine.replies.append(Reply(hold_after=1))
            (await stand.connect()).send(request(conversation(f"held {n}", 1)))
        await until(lambda: all(e.outstanding == 1 for e in routed.endpoints))
        waiting = asyncio.create_task(stand.post(conversation("a", 5)))
        await until(lambda: routed.stats.waiting == 1)
        away.go.set()
        assert (await waiting).status == 200
        assert len(away.requests) == 2
        found[home].go.set()
        await until(lambda: all(e.outstanding == 0 for e in routed.endpoints))
        assert await sent(stand, found, conversation("a", 6)) == 1 - home
        assert prefill(stand) == [0, 0]


async def test_an_engine_that_is_gone_is_not_remembered(journal: Path) -> None:
    async with AsyncExitStack() as stack:
        found = await engines(stack, 3)
        wanted = route(*found, balance="prefix")
        stand = await stack.enter_async_context(standing(journal, wanted))
        home = await sent(stand, found, conversation("a", 3))
        left = [engine for engine in wanted.endpoints if engine.url != found[home].url]
        stand.gateway.table.replace(table(wanted.model_copy(update={"endpoints": left}), version=2))
        other = await sent(stand, found, conversation("a", 4))
        assert other != home
        stand.gateway.table.replace(table(wanted, version=3))
        assert await sent(stand, found, conversation("a", 5)) == other


async def test_a_session_sticks_by_header_cache_key_and_user(journal: Path) -> None:
    async with AsyncExitStack() as stack:
        found = await engines(stack, 4)
        stand = await stack.enter_async_context(standing(journal, route(*found, balance="session")))
        homes: Counter[int] = Counter()
        for n in range(12):
            by_header = {await sent(stand, found, chat(f"{m}"), x_session_id=f"s{n}") for m in range(3)}
            by_key = {await sent(stand, found, chat(f"{m}", prompt_cache_key=f"k{n}")) for m in range(3)}
            by_user = {await sent(stand, found, chat(f"{m}", user=f"u{n}")) for m in range(3)}
            assert [len(by_header), len(by_key), len(by_user)] == [1, 1, 1]
            homes.update([*by_header, *by_key, *by_user])
        assert len(homes) == 4


async def test_a_session_moves_when_its_engine_dies_and_stays_there(journal: Path) -> None:
    async with AsyncExitStack() as stack:
        found = await engines(stack, 3)
        stand = await stack.enter_async_context(standing(journal, route(*found, balance="session")))
        home = await sent(stand, found, chat(), x_session_id="s")
        await found[home].stop()
        others = {await sent(stand, found, chat(), x_session_id="s") for _ in range(4)}
        assert len(others) == 1
        assert home not in others
        await found[home].start()
        assert await sent(stand, found, chat(), x_session_id="s") in others


async def test_round_robin_goes_round(journal: Path) -> None:
    async with AsyncExitStack() as stack:
        found = await engines(stack, 3)
        stand = await stack.enter_async_context(standing(journal, route(*found, balance="round_robin")))
        order = [await sent(stand, found, chat()) for _ in range(9)]
        assert order[:3] == order[3:6] == order[6:]
        assert len(set(order)) == 3


async def test_a_balance_of_a_later_version_serves(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine, engine, balance="by stars")) as stand:
        assert (await stand.post(chat())).status == 200


async def test_other_bodies_are_balanced_by_prompt_too(journal: Path) -> None:
    async with AsyncExitStack() as stack:
        found = await engines(stack, 3)
        stand = await stack.enter_async_context(standing(journal, route(*found, balance="prefix")))
        for path, fields in (
            ("/v1/completions", {"prompt": "words " * 800}),
            ("/v1/embeddings", {"input": "other " * 800}),
        ):
            homes: set[int] = set()
            for seed in range(4):
                before = [len(e.requests) for e in found]
                body = json.dumps({"model": "m", "seed": seed, **fields}).encode()
                assert (await stand.post(body, path)).status == 200
                homes.add(where(found, before))
            assert len(homes) == 1
