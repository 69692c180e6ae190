"""Several gateway processes on one port: killed, restarted, drained and asked for metrics as one."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.alone import KEY, Alone, content, free_port, running
from tests.integration.gateway.harness import Raw, chat, request, until

DONE = 'cortex_gateway_requests_total{outcome="done",route="m",status="200"}'


@pytest.fixture
def alone(tmp_path: Path) -> Alone:
    """Not started."""
    with free_port() as port:
        return Alone(tmp_path, port)


@asynccontextmanager
async def two(alone: Alone, engine: Upstream, **more: Any) -> AsyncGenerator[Alone]:
    """Two workers in front of one engine."""
    async with running(alone, content(engine.url, workers=2, **more)):
        assert len(alone.workers()) == 2
        await alone.event("limits.shared", 2)  # both are up: one of them answers before
        yield alone


async def test_workers_know_of_each_other_which_engine_has_read_what(alone: Alone) -> None:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Upstream()) for _ in range(3)]
        urls = [engine.url for engine in engines]
        await stack.enter_async_context(running(alone, content(*urls, workers=2, balance="prefix")))
        assert len(alone.workers()) == 2
        for n in range(8):
            words = f"{n} words " * 400
            for turn in range(1, 6):  # each on a connection of its own: either worker may get it
                raw = await alone.connect()
                body = chat(words * turn, stream=True)
                raw.send(request(body, authorization=f"Bearer {KEY}"))
                assert (await raw.answer()).status == 200
                raw.close()
            homes = [sum(words in r.raw_body.decode() for r in engine.requests) for engine in engines]
            assert sorted(homes) == [0, 0, 5]


class Load:
    """Clients that ask again and again until told to stop, each on a connection that it keeps."""

    def __init__(self, alone: Alone) -> None:
        self._alone = alone
        self.answered: set[str] = set()
        self.broken = 0
        self.stopping = False

    async def client(self) -> None:
        """One client."""
        raw: Raw | None = None
        while not self.stopping:
            raw = raw or await self._alone.connect()
            raw.send(request(chat(stream=True), authorization=f"Bearer {KEY}"))
            try:
                answer = await raw.answer()
            except (OSError, asyncio.IncompleteReadError):
                answer = None
            if answer is None or answer.cut:
                self.broken += 1
                raw.abort()
                raw = None
            else:
                assert answer.events[-1] == "[DONE]"
                self.answered.add(answer.headers["x-request-id"])
        if raw is not None:
            raw.close()

    @asynccontextmanager
    async def by(self, clients: int) -> AsyncGenerator[None]:
        """So many clients are at it; afterwards all have ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self.client())
            try:
                yield
            finally:
                self.stopping = True


async def test_kill_9_of_one_of_two_loses_no_finished_record_and_counts_none_twice(alone: Alone) -> None:
    async with Upstream(Reply(events=3, interval_seconds=0.01)) as engine, two(alone, engine):
        load = Load(alone)
        async with load.by(12):
            for _ in range(3):
                enough = len(load.answered) + 30
                await until(lambda enough=enough: len(load.answered) >= enough)
                victim, other = alone.workers()
                os.kill(victim, signal.SIGKILL)
                await until(lambda victim=victim: len({*alone.workers()} - {victim}) == 2)
                assert other in alone.workers()
        await until(lambda: len(alone.records()) >= len({r.headers["x-request-id"] for r in engine.requests}))
        records = alone.records()
        by_outcome: dict[str, set[str]] = {"done": set(), "gateway_died": set(), "client_left": set()}
        for record in records:
            by_outcome[record["outcome"]].add(record["request_id"])
        assert len(records) == sum(map(len, by_outcome.values()))
        assert by_outcome["done"] >= load.answered
        assert {r.headers["x-request-id"] for r in engine.requests} <= set().union(*by_outcome.values())
        assert 0 < len(by_outcome["gateway_died"]) <= load.broken
        assert all(r["source"] == "estimated" for r in records if r["outcome"] == "gateway_died")


async def test_connections_that_came_while_a_worker_was_dead_are_served(alone: Alone) -> None:
    async with Upstream() as engine, two(alone, engine):
        victim = alone.workers()[0]
        alone.signal(signal.SIGSTOP)  # so that nobody comes in its place yet
        os.kill(victim, signal.SIGKILL)
        raws = [await alone.connect() for _ in range(20)]
        for raw in raws:
            raw.send(request(chat(), authorization=f"Bearer {KEY}"))
        alone.signal(signal.SIGCONT)
        assert [(await raw.answer()).status for raw in raws] == [200] * 20
        for raw in raws:
            raw.close()


async def metrics(alone: Alone) -> dict[str, float]:
    """What one of the processes says."""
    found = (await alone.get("/metrics")).body.decode()
    return {name: float(value) for name, value in re.findall(r"^([^#]\S*) (\S+)$", found, re.M)}


async def test_any_process_tells_the_metrics_of_all_and_no_count_falls(alone: Alone) -> None:
    async with Upstream() as engine, two(alone, engine):
        for _ in range(20):
            assert (await alone.post(chat())).status == 200
        for _ in range(8):  # whichever process is asked
            assert (await metrics(alone))[DONE] == 20
        waiting = [await alone.connect() for _ in range(6)]
        for raw in waiting:
            raw.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await raw.answer()).status == 200
        assert (await metrics(alone))["cortex_gateway_connections"] >= 6
        victim = alone.workers()[0]
        os.kill(victim, signal.SIGKILL)
        await until(lambda: len({*alone.workers()} - {victim}) == 2)
        for _ in range(8):
            assert (await metrics(alone))[DONE] == 20
        for _ in range(5):
            assert (await alone.post(chat())).status == 200
        assert (await metrics(alone))[DONE] == 25
        for raw in waiting:
            raw.close()


async def test_a_process_that_hangs_keeps_nobody_from_metrics(alone: Alone) -> None:
    async with Upstream() as engine, two(alone, engine):
        for _ in range(10):
            assert (await alone.post(chat())).status == 200
        assert (await metrics(alone))[DONE] == 10
        stopped = alone.workers()[0]
        raws = [await alone.connect() for _ in range(12)]
        os.kill(stopped, signal.SIGSTOP)
        try:
            told = 0
            for raw in raws:
                raw.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                try:
                    answer = await raw.answer(seconds=3)
                except TimeoutError:
                    continue  # this one is on the process that stands still
                told += 1
                assert f"{DONE} 10.0" in answer.body.decode()
            assert told
        finally:
            os.kill(stopped, signal.SIGCONT)
            for raw in raws:
                raw.abort()


async def test_changes_reach_all_and_who_comes_later_has_the_last_good_content(alone: Alone) -> None:
    async with Upstream() as engine, two(alone, engine):
        alone.write({**content(engine.url, name="n"), "listen": {"port": alone.port, "workers": 2}})
        for _ in range(8):
            await alone.serves("n")
        assert len(alone.events("routes_file.read")) == 1
        alone.write("routes: nonsense")
        await alone.event("routes_file.refused")
        for victim in alone.workers():
            os.kill(victim, signal.SIGKILL)
            await until(lambda victim=victim: len({*alone.workers()} - {victim}) == 2)
        for _ in range(8):
            assert await alone.models() == ["n"]
        alone.write({**content(engine.url, name="o"), "listen": {"port": alone.port, "workers": 2}})
        alone.signal(signal.SIGHUP)
        for _ in range(8):
            await alone.serves("o")


async def test_sigterm_drains_all_and_a_second_one_cuts(alone: Alone) -> None:
    async with Upstream(Reply(events=3, hold_after=1)) as engine:
        async with two(alone, engine):
            raws = [await alone.connect() for _ in range(6)]
            for raw in raws:
                raw.send(request(chat(stream=True), authorization=f"Bearer {KEY}"))
            await engine.until("sent_events", 6)
            workers = alone.workers()
            alone.signal(signal.SIGTERM)
            for worker in workers:
                os.kill(worker, signal.SIGTERM)  # as service managers do with a whole group
            await alone.event("gateway.draining", 2)
            async with asyncio.timeout(10):
                while await alone.ready():
                    await asyncio.sleep(0.01)
            engine.go.set()
            answers = [await raw.answer() for raw in raws]
            assert [(answer.text, answer.cut) for answer in answers] == [("t0 t1 t2 ", False)] * 6
            assert await alone.ended() == 0
            for raw in raws:
                raw.close()
        engine.go.clear()
        async with running(alone, content(engine.url, workers=2), CORTEX_HTTP__DRAIN_SECONDS="600"):
            raw = await alone.connect()
            raw.send(request(chat(stream=True), authorization=f"Bearer {KEY}"))
            await engine.until("sent_events", 19)
            alone.signal(signal.SIGINT)
            await alone.event("gateway.draining", 4)
            alone.signal(signal.SIGINT)
            assert await alone.ended() == 0
            raw.abort()


async def test_workers_end_with_their_parent(alone: Alone) -> None:
    async with Upstream() as engine, two(alone, engine):
        workers = alone.workers()
        alone.signal(signal.SIGKILL)
        await alone.ended()
        await until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 30)
        with pytest.raises(ConnectionRefusedError):
            await alone.connect()


async def test_who_cannot_start_ends_all_with_its_reason(alone: Alone) -> None:
    alone.journal.write_text("not a folder")
    alone.write(content("http://127.0.0.1:1", workers=2, port=alone.port))
    with pytest.raises(AssertionError, match="usage cannot be kept"):
        await alone.start()
    assert await alone.ended() == 1


async def test_who_dies_again_and_again_is_waited_for_and_the_other_serves(alone: Alone) -> None:
    async with Upstream() as engine, two(alone, engine):
        _, other = alone.workers()
        for _ in range(5):
            await until(lambda: len(alone.workers()) == 2)
            (victim,) = {*alone.workers()} - {other}
            os.kill(victim, signal.SIGKILL)
            await until(lambda victim=victim: victim not in alone.workers())
        assert alone.workers() == [other]
        for _ in range(20):  # no connection waits on a socket that nobody serves
            assert (await alone.post(chat())).status == 200
        await until(lambda: len(alone.workers()) == 2, 20)


async def test_limits_of_a_key_hold_over_all_processes(alone: Alone) -> None:
    keys = [
        {"name": "me", "key": KEY},
        {"name": "few", "key": "sk-few", "rpm": 20},
        {"name": "one", "key": "sk-one", "concurrency": 2},
    ]
    async with Upstream() as engine, two(alone, engine, keys=keys):
        statuses = [(await alone.post(chat(), key="sk-few")).status for _ in range(60)]
        assert statuses.count(200) == 20
        assert statuses.count(429) == 40
        engine.reply = Reply(hold_after=1)
        raws = [await alone.connect() for _ in range(10)]
        for raw in raws:
            raw.send(request(chat(stream=True), authorization="Bearer sk-one"))
        refused = 0
        answers = [asyncio.ensure_future(raw.answer()) for raw in raws]
        async with asyncio.timeout(10):
            while refused < 8:
                await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
                refused = sum(each.done() and each.result().status == 429 for each in answers)
        engine.go.set()
        assert sorted([(await each).status for each in answers]) == [200] * 2 + [429] * 8
        for raw in raws:
            raw.close()
        # What a worker that died held is free, and what was used stays used.
        engine.go.clear()
        raws = [await held(alone, "sk-one") for _ in range(2)]
        for victim in alone.workers():
            os.kill(victim, signal.SIGKILL)
            await until(lambda victim=victim: len({*alone.workers()} - {victim}) == 2)
        engine.reply = Reply()
        assert (await alone.post(chat(), key="sk-one")).status == 200
        assert (await alone.post(chat(), key="sk-few")).status == 429
        for raw in raws:
            raw.abort()


async def test_the_cap_of_an_endpoint_holds_over_all_processes(alone: Alone) -> None:
    async with Upstream(Reply(events=3, interval_seconds=0.02)) as engine, two(alone, engine, concurrency=3):
        # Processes that have just met keep to their shares for a while: 1 each.
        async with asyncio.timeout(30):
            while engine.most_open < 3:
                async with asyncio.TaskGroup() as group:
                    asked = [group.create_task(alone.post(chat(stream=True))) for _ in range(12)]
                for answer in (each.result() for each in asked):
                    assert (answer.status, answer.text) == (200, "t0 t1 t2 ")
        asked_for = len(engine.requests)
        for _ in range(4):
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(alone.post(chat(stream=True))) for _ in range(12)]
            assert [each.result().text for each in asked] == ["t0 t1 t2 "] * 12
        assert engine.most_open == 3
        # What a worker held that died is free.
        engine.reply = Reply(hold_after=1)
        raws = [await alone.connect() for _ in range(3)]
        for raw in raws:
            raw.send(request(chat(stream=True), authorization=f"Bearer {KEY}"))
        await engine.until("requests", asked_for + 12 * 4 + 3)
        for victim in alone.workers():
            os.kill(victim, signal.SIGKILL)
            await until(lambda victim=victim: len({*alone.workers()} - {victim}) == 2)
        engine.reply = Reply()
        for _ in range(6):
            assert (await alone.post(chat())).status == 200
        for raw in raws:
            raw.abort()


async def held(alone: Alone, key: str) -> Raw:
    """A stream that has begun: a slot that another process has freed may be had a moment later."""
    while True:
        raw = await alone.connect()
        raw.send(request(chat(stream=True), authorization=f"Bearer {key}"))
        if b" 200 " in await raw.line():
            return raw
        raw.abort()
        await asyncio.sleep(0.05)
