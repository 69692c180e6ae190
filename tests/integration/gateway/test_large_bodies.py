"""Bodies of more than some KB are not joined: whatever becomes of them, the engine gets what was sent."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.harness import chat, key_record, request, route, standing

_SIZES = (1_000, 20_000, 120_000, 200_000, 700_000)


def _bodies() -> list[dict[str, Any]]:
    return [
        chat(text * size, **fields)
        for size in _SIZES
        for text, fields in (
            ("x", {}),
            ("y", {"stream": True}),
            ("z", {"stream": True, "stream_options": {"include_usage": True}}),
            ("w", {"stream": True, "stream_options": {"include_usage": False}}),
        )
    ]


def _expected(sent: dict[str, Any], **changed: Any) -> dict[str, Any]:
    # With usage, which is always asked for.
    usage = {"stream_options": {"include_usage": True}} if sent.get("stream") else {}
    return {**sent, **usage, **changed}


@pytest.mark.parametrize("pieces", [1, 3])
async def test_the_engine_gets_what_was_sent(journal: Path, pieces: int) -> None:
    restricted = key_record(models=["m"])
    async with Upstream() as engine, standing(journal, route(engine), keys=[restricted]) as stand:
        raw = await stand.connect()
        # Twice: the second time with heads that are known.
        bodies = _bodies() * 2
        for body in bodies:
            data = request(body)
            step = -(-len(data) // pieces)
            for start in range(0, len(data), step):
                raw.send(data[start : start + step])
                await asyncio.sleep(0.005 * (pieces > 1))
            assert (await raw.answer()).status == 200
        assert [asked.body for asked in engine.requests] == [_expected(body) for body in bodies]
        assert all(int(asked.headers["content-length"]) == len(asked.raw_body) for asked in engine.requests)


async def test_the_model_has_another_name_there(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine, model="theirs")) as stand:
        raw = await stand.connect()
        for body in _bodies():
            raw.send(request(body))
            assert (await raw.answer()).status == 200
        assert [asked.body for asked in engine.requests] == [
            _expected(body, model="theirs") for body in _bodies()
        ]


@pytest.mark.parametrize("stream", [False, True])
async def test_another_engine_gets_it_again(journal: Path, stream: bool) -> None:
    async with (
        Upstream(Reply(status=503)) as bad,
        Upstream() as good,
        standing(journal, route(bad, bad, good), upstream={"attempts_max": 3}) as stand,
    ):
        for size in _SIZES:
            answer = await stand.post(chat("x" * size, stream=stream))
            assert answer.status == 200
        assert bad.requests
        assert [asked.body for asked in good.requests] == [
            _expected(chat("x" * size, stream=stream)) for size in _SIZES
        ]


async def test_a_name_given_twice_is_refused_for_a_key_of_some_models(journal: Path) -> None:
    restricted = key_record(models=["m"])
    async with Upstream() as engine, standing(journal, route(engine), keys=[restricted]) as stand:
        for size in _SIZES:
            twice = json.dumps(chat("x" * size)).encode()[:-1] + b',"model":"m"}'
            raw = await stand.connect()
            raw.send(request(twice))
            answer = await raw.answer()
            assert (answer.status, answer.error["param"]) == (400, "model")
            raw.send(request(json.dumps(chat("x" * size)).encode()[:-1]))
            answer = await raw.answer()
            assert (answer.status, "not valid JSON" in answer.error["message"]) == (400, True)
        assert not engine.requests


async def test_an_engine_that_reads_slowly_gets_all_of_it(journal: Path) -> None:
    got = bytearray()
    done = asyncio.Event()

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(got) < length:
            got.extend(await reader.read(50_000))
            await asyncio.sleep(0.002)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()
        done.set()

    server = await asyncio.start_server(read, "127.0.0.1", 0, limit=16_384)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with standing(journal, route(url)) as stand:
            body = chat("".join(f"{number:07x}" for number in range(700_000)))
            assert (await stand.post(body)).status == 200
            await done.wait()
            assert json.loads(bytes(got)) == body


@pytest.mark.parametrize("seed", range(6))
async def test_however_requests_are_cut_and_follow_each_other(journal: Path, seed: int) -> None:
    """Large ones and small ones in turn on one connection, each read as it comes: nothing is mixed up."""
    chance = random.Random(seed)
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(request(chat("x" * 300_000)))  # its head is known from here on
        assert (await raw.answer()).status == 200
        expected = [chat("x" * 300_000)]
        for _ in range(12):
            sizes = chance.choices(
                (100, 70_000, 140_000, 262_000, 300_000, 900_000), k=chance.choice((1, 1, 2))
            )
            bodies = [chat(chance.choice("abc") * (size + chance.randrange(9))) for size in sizes]
            data = b"".join(request(body) for body in bodies)
            cuts = sorted(chance.randrange(len(data)) for _ in range(chance.randrange(6)))
            if chance.random() < 0.5:  # as many clients do it: the head alone, then the body
                cuts = sorted({data.index(b"\r\n\r\n") + 4, *cuts})
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                raw.send(data[start:end])
                await asyncio.sleep(0.003)
            for _ in bodies:
                assert (await raw.answer()).status == 200
            expected += bodies
        assert [asked.body for asked in engine.requests] == expected
        # One that leaves in the middle of a body takes nothing with it.
        raw.send(request(chat("y" * 300_000))[:200_000])
        await asyncio.sleep(0.01)
        raw.abort()
        other = await stand.connect()
        other.send(request(chat("z" * 300_000)))
        assert (await other.answer()).status == 200
        assert engine.requests[-1].body == chat("z" * 300_000)
        assert len(engine.requests) == len(expected) + 1
