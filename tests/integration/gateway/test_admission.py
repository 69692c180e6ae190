"""Who gets a slot when there are fewer than requests: classes, turns between keys, and places kept free."""

from pathlib import Path

from cortex_shared.contracts.keys import KeyRecord, hash_key

from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.harness import Raw, Stand, chat, request, route, standing, until


def keys(**priorities: int) -> list[KeyRecord]:
    return [
        KeyRecord(id=number, name=name, hash=hash_key(f"sk-{name}"), priority=priority)
        for number, (name, priority) in enumerate(priorities.items())
    ]


async def ask(stand: Stand, key: str, word: str, waiting: int | None = None) -> Raw:
    """Ask with this key; returns once so many requests wait, or the engine has it."""
    raw = await stand.connect()
    raw.send(request(chat(word, stream=True), authorization=f"Bearer sk-{key}"))
    line = stand.gateway.table.routes()[0].waiting
    if waiting is not None:
        await until(lambda: len(line) == waiting)
    return raw


def asked(engine: Upstream) -> list[str]:
    return [each.body["messages"][0]["content"] for each in engine.requests]


async def test_keys_take_turns_and_classes_go_first(journal: Path) -> None:
    async with (
        Upstream(Reply(hold_after=0)) as engine,
        standing(
            journal,
            route(engine, concurrency=1, reserve=0),
            keys=keys(busy=0, calm=0, urgent=5, batch=-5),
        ) as stand,
    ):
        raws = [await ask(stand, "busy", "busy0")]
        await engine.until("requests", 1)
        raws.append(await ask(stand, "batch", "batch0", 1))
        for number in range(1, 4):
            raws.append(await ask(stand, "busy", f"busy{number}", number + 1))
        raws.append(await ask(stand, "calm", "calm0", 5))
        raws.append(await ask(stand, "urgent", "urgent0", 6))
        engine.reply = Reply()
        engine.go.set()
        for raw in raws:
            assert (await raw.answer()).status == 200
        assert asked(engine) == ["busy0", "urgent0", "busy1", "calm0", "busy2", "busy3", "batch0"]


async def test_a_place_is_kept_for_a_class_that_asks(journal: Path) -> None:
    async with (
        Upstream(Reply(hold_after=0)) as engine,
        standing(
            journal,
            route(engine, concurrency=4, reserve=0.25),
            keys=keys(urgent=1, normal=0),
        ) as stand,
    ):
        first = await ask(stand, "urgent", "urgent0")
        await engine.until("requests", 1)
        raws = [await ask(stand, "normal", f"normal{number}") for number in range(2)]
        await engine.until("requests", 3)
        raws.append(await ask(stand, "normal", "normal2", 1))
        # The last slot is for who comes from above, though others wait.
        raws.append(await ask(stand, "urgent", "urgent1"))
        await engine.until("requests", 4)
        assert asked(engine)[3] == "urgent1"
        engine.go.set()
        for raw in (first, *raws):
            assert (await raw.answer()).status == 200
        assert asked(engine)[4] == "normal2"


async def test_who_leaves_the_line_is_passed_over(journal: Path) -> None:
    async with (
        Upstream(Reply(hold_after=0)) as engine,
        standing(journal, route(engine, concurrency=1), keys=keys(a=0)) as stand,
    ):
        first = await ask(stand, "a", "0")
        await engine.until("requests", 1)
        second = await ask(stand, "a", "1", 1)
        third = await ask(stand, "a", "2", 2)
        second.abort()
        await until(lambda: len(stand.gateway.table.routes()[0].waiting) == 1)
        engine.go.set()
        assert [(await raw.answer()).status for raw in (first, third)] == [200, 200]
        assert asked(engine) == ["0", "2"]
        await until(lambda: stand.gateway.table.routes()[0].endpoints[0].outstanding == 0)
