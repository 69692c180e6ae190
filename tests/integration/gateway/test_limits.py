"""Limits over several gateway processes and a real Redis, whose loads differ, and which die."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from cortex_shared.contracts.keys import KeyRecord, hash_key

from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.harness import Answer, Raw, chat, parse, request, route, until
from tests.integration.gateway.process import GatewayProcess
from tests.integration.gateway.test_fleet import publish
from tests.servers import ServersUnderTest


class Fleet:
    """Three gateway processes that stand for all tests here; `prepare` gives a test keys that nobody used."""

    def __init__(self, servers: ServersUnderTest, folder: Path) -> None:
        self.servers = servers
        self.free = self.limited = ""
        self.version = 1000  # above those of other tests with this Redis
        self.raws: list[Raw] = []
        self.processes = [self.another(folder / str(number)) for number in range(3)]

    def another(self, folder: Path) -> GatewayProcess:
        """One more process, not started. NATS is away, which costs them nothing."""
        return GatewayProcess(folder, redis_url=self.servers.redis_url, nats_url="nats://127.0.0.1:1")

    async def prepare(self, engine: Upstream, *, concurrency_per_engine: int = 0, **limits: Any) -> None:
        """One key without limits and one with these; all processes know them, and each other."""
        await self.publish(engine, concurrency_per_engine=concurrency_per_engine, new=True, **limits)
        for process in self.processes:
            if not process.running:
                await process.start()
        await self.shared()

    async def publish(
        self, engine: Upstream, *, concurrency_per_engine: int = 0, new: bool = False, **limits: Any
    ) -> None:
        """Write table and ring."""
        self.version += 1
        if new:
            self.free, self.limited = f"sk-cortex-free-{self.version}", f"sk-cortex-limited-{self.version}"
        number = int(self.limited.rpartition("-")[2])
        ring = [
            KeyRecord(id=1, name="free", hash=hash_key(self.free)),
            KeyRecord(id=1000 + number, name="limited", hash=hash_key(self.limited), **limits),
        ]
        routes = route(engine, concurrency=concurrency_per_engine)
        await publish(self.servers.redis_url, routes, keys=ring, version=self.version)

    async def shared(self, *more: GatewayProcess) -> None:
        """Wait until all serve, know of each other, and settle."""
        processes = (*self.processes, *more)
        with anyio.fail_after(60):
            for process in processes:
                while (await self.ask(process, self.free)).status != 200:
                    await anyio.sleep(0.05)
                while True:
                    found = await metrics(process)
                    gateways = found["cortex_gateway_limits_gateways"]
                    if found["cortex_gateway_limits_shared"] and gateways == len(processes):
                        break
                    await anyio.sleep(0.1)

    async def ask(self, process: GatewayProcess, key: str | None = None, **fields: Any) -> Answer:
        """One request, with the limited key unless told."""
        raw = await process.connect()
        raw.send(request(chat(**fields), authorization=f"Bearer {key or self.limited}"))
        answer = await raw.answer()
        raw.close()
        return answer

    async def capped(self, *more: GatewayProcess) -> None:
        """Wait until all know the cap of the engine."""
        with anyio.fail_after(60):
            for process in (*self.processes, *more):
                while not (await metrics(process))["cortex_gateway_limits_capped_endpoints"]:
                    await anyio.sleep(0.1)

    async def stream(self, process: GatewayProcess, key: str | None = None) -> tuple[Raw, int]:
        """A stream that has begun, or was refused, and its status."""
        raw = await process.connect()
        self.raws.append(raw)
        raw.send(request(chat(stream=True), authorization=f"Bearer {key or self.limited}"))
        async with asyncio.timeout(30):
            head = await raw.reader.readuntil(b"\r\n\r\n")
        return raw, parse(head)[0]


@pytest.fixture(scope="module")
def standing_fleet(servers: ServersUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The processes; they are started by the first test."""
    made = Fleet(servers, tmp_path_factory.mktemp("limits"))
    yield made
    for process in made.processes:
        process.kill()


@pytest.fixture
async def fleet(standing_fleet: Fleet, servers: ServersUnderTest) -> AsyncGenerator[Fleet]:
    """The fleet, and an empty Redis before its first test."""
    if not any(process.running for process in standing_fleet.processes):
        await servers.flush_redis()
    yield standing_fleet
    for raw in standing_fleet.raws:
        raw.abort()
    standing_fleet.raws.clear()
    await asyncio.sleep(0.01)  # a transport closes a turn later


async def metrics(process: GatewayProcess) -> dict[str, float]:
    """Series without labels."""
    raw = await process.connect()
    raw.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
    lines = (await raw.answer()).body.decode().splitlines()
    raw.close()
    pairs = (line.split(" ") for line in lines if line.count(" ") == 1)
    return {name: float(value) for name, value in pairs}


class Load:
    """Clients that send one request after the other; `seen` counts the statuses by process."""

    def __init__(self, fleet: Fleet, shares: Sequence[int], **fields: Any) -> None:
        self._clients = [
            process for process, share in zip(fleet.processes, shares, strict=True) for _ in range(share)
        ]
        self._data = request(chat(**fields), authorization=f"Bearer {fleet.limited}")
        self.seen: dict[GatewayProcess, Counter[int]] = {process: Counter() for process in fleet.processes}
        self.last: Answer | None = None
        self._begun = time.monotonic()

    def admitted(self, process: GatewayProcess | None = None) -> int:
        """Answers with status 200."""
        return sum(seen[200] for which, seen in self.seen.items() if process in (None, which))

    @property
    def minutes(self) -> int:
        """How many limits of a minute may have been used up."""
        return 1 + int((time.monotonic() - self._begun) // 60)

    async def run(self, each: int, done: Callable[[], bool] = lambda: False) -> None:
        """Every client sends `each` requests, or until `done`."""
        async with anyio.create_task_group() as group:
            for process in self._clients:
                group.start_soon(self._client, process, each, done)

    async def _client(self, process: GatewayProcess, each: int, done: Callable[[], bool]) -> None:
        raw = await process.connect()
        for _ in range(each):
            raw.send(self._data)
            answer = await raw.answer()
            self.seen[process][answer.status] += 1
            if answer.status != 200:
                self.last = answer
            if done():
                break
        raw.close()


@pytest.mark.parametrize("limit", [10, 100, 1200])
async def test_requests_a_minute_hold_over_processes_whose_loads_differ(fleet: Fleet, limit: int) -> None:
    async with Upstream(Reply(body=b"{}")) as engine:
        await fleet.prepare(engine, requests_per_minute=limit)
        load = Load(fleet, (7, 2, 1))
        await load.run(max(4, limit // 8))
        assert 0.95 * limit <= load.admitted() <= 1.05 * limit * load.minutes, load.seen
        assert load.last is not None
        error = load.last.error
        assert (load.last.status, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
        assert 1 <= int(load.last.headers["retry-after"]) <= 60
        assert load.last.headers["x-ratelimit-limit-requests"] == str(limit)
        assert load.last.headers["x-ratelimit-remaining-requests"] == "0"


async def test_tokens_a_minute_are_those_that_the_engine_counted(fleet: Fleet) -> None:
    """Each is reserved with more than it comes to; what is left over is given back and used."""
    async with Upstream() as engine:
        await fleet.prepare(engine, tokens_per_minute=3000)
        load = Load(fleet, (4, 1, 1), max_tokens=20)
        # 300 requests of 10 tokens each fit.
        await load.run(400, lambda: load.admitted() >= 300 or load.minutes > 1)
        late = Load(fleet, (4, 1, 1), max_tokens=20)
        await late.run(10)
        admitted = load.admitted() + late.admitted()
        assert 0.95 * 300 <= admitted <= 1.05 * 300 * load.minutes, (load.seen, late.seen)
        assert late.last is not None
        assert late.last.error["type"] == "tokens"
        assert late.last.headers["x-ratelimit-limit-tokens"] == "3000"


async def test_slots_hold_over_processes_and_are_free_at_once_when_clients_leave(fleet: Fleet) -> None:
    async with Upstream(Reply(hold_after=1)) as engine:
        await fleet.prepare(engine, concurrency=8)
        for _ in range(3):
            streams = [await fleet.stream(fleet.processes[number % 5 % 3]) for number in range(20)]
            assert [status for _, status in streams].count(200) == 8
            assert {status for _, status in streams} == {200, 429}
            for raw, _ in streams:
                raw.abort()
            await until(lambda: engine.open_answers == 0)
            # Everywhere else they are free as soon as that is told, a tenth of a second later.
            with anyio.fail_after(10):
                while True:
                    raw, status = await fleet.stream(fleet.processes[2])
                    raw.abort()
                    if status == 200:
                        break
            await until(lambda: engine.open_answers == 0)


async def test_slots_of_a_killed_process_are_free_once_its_lease_expires(
    fleet: Fleet, tmp_path: Path
) -> None:
    async with Upstream(Reply(hold_after=1)) as engine:
        killed = fleet.another(tmp_path)
        await fleet.prepare(engine, concurrency=4)
        await killed.start()
        await fleet.shared(killed)
        held = [await fleet.stream(killed) for _ in range(5)]
        assert [status for _, status in held] == [200] * 4 + [429]
        await killed.stop()
        raw, status = await fleet.stream(fleet.processes[0])
        assert status == 429
        raw.abort()
        got: list[Raw] = []
        begun = time.monotonic()
        with anyio.fail_after(60):
            while len(got) < 4:
                raw, status = await fleet.stream(fleet.processes[len(got) % 3])
                if status == 200:
                    got.append(raw)
                else:
                    raw.abort()
                    await anyio.sleep(0.05)
        print(f"slots of a killed process were free after {time.monotonic() - begun:.1f} s")
        assert (await fleet.stream(fleet.processes[0]))[1] == 429
        assert len(held) == 5
        await fleet.shared()  # its share is the others' again


async def test_a_redis_that_dies_and_comes_back_empty_hands_out_nothing_twice(fleet: Fleet) -> None:
    """Away: each process has its share and no more. Back: what was used stays used, whatever Redis forgot."""
    async with Upstream(Reply(body=b"{}")) as engine:
        limit, servers = 300, fleet.servers
        await fleet.prepare(engine, requests_per_minute=limit)
        load = Load(fleet, (4, 2, 1))
        await load.run(20)
        before = {process: load.admitted(process) for process in fleet.processes}
        assert sum(before.values()) == 140
        os.kill(servers.pid("redis"), signal.SIGSTOP)
        try:
            await load.run(60)
            # A process that had more than its share before stays with that.
            for process, had in before.items():
                most = max(had, limit // 3) + 4
                sent = load.seen[process].total()
                assert min(sent, most - 8) <= load.admitted(process) <= most
            away = load.admitted()
            assert (await fleet.ask(fleet.processes[0], fleet.free)).status == 200
            assert (await fleet.ask(fleet.processes[0], "sk-cortex-unknown")).status == 401
            for process in fleet.processes:
                assert (await metrics(process))["cortex_gateway_limits_shared"] == 0
        finally:
            os.kill(servers.pid("redis"), signal.SIGCONT)
        await servers.empty("redis")
        await fleet.publish(engine, requests_per_minute=limit)
        await fleet.shared()
        await load.run(20)
        assert load.admitted() <= max(away, limit * 1.05) + (load.minutes - 1) * limit, load.seen
        servers.kill("redis")
        await servers.wait("redis")
        await fleet.shared()
        await load.run(5)
        assert load.admitted() <= max(away, limit * 1.05) + (load.minutes - 1) * limit, load.seen


async def test_a_narrowed_and_a_revoked_key_are_refused_everywhere(fleet: Fleet) -> None:
    async with Upstream(Reply(body=b"{}")) as engine:
        await fleet.prepare(engine, requests_per_minute=100_000)
        changes: list[tuple[dict[str, Any], int]] = [
            ({"requests_per_minute": 1}, 429),
            ({"models": ["other"]}, 403),
            ({}, 401),
        ]
        for change, status in changes:
            if not change:
                fleet.version += 1
                await publish(fleet.servers.redis_url, route(engine), keys=[], version=fleet.version)
            else:
                await fleet.ask(fleet.processes[0])
                await fleet.publish(engine, **change)
            begun = time.monotonic()
            with anyio.fail_after(10):
                for process in fleet.processes:
                    while (await fleet.ask(process)).status != status:
                        await anyio.sleep(0.01)
            print(f"{status} everywhere after {time.monotonic() - begun:.3f} s")


async def test_a_budget_of_a_day_is_used_up_once(fleet: Fleet) -> None:
    async with Upstream() as engine:
        await fleet.prepare(engine, tokens_per_day=1000)
        load = Load(fleet, (3, 2, 1), max_tokens=3)
        await load.run(60)
        # A hundred requests of 10 tokens, and those that were under way at the end.
        assert 100 <= load.admitted() <= 106, load.seen
        assert load.last is not None
        assert (load.last.status, load.last.error["code"]) == (429, "insufficient_quota")
        assert load.last.headers["x-should-retry"] == "false"
        assert "retry-after" not in load.last.headers
        # Redis forgets, the gateways do not.
        await fleet.servers.empty("redis")
        await fleet.publish(engine, tokens_per_day=1000)
        await fleet.shared()
        assert (await fleet.ask(fleet.processes[0])).error["code"] == "insufficient_quota"


async def test_a_client_that_leaves_while_its_key_is_asked_for_takes_nothing(fleet: Fleet) -> None:
    async with Upstream(Reply(hold_after=1)) as engine:
        await fleet.prepare(engine, requests_per_minute=5, concurrency=2)
        process = fleet.processes[0]
        asked = (await metrics(process))["cortex_gateway_limits_waits_total"]
        os.kill(fleet.servers.pid("redis"), signal.SIGSTOP)
        try:
            raws = [await process.connect() for _ in range(4)]
            for raw in raws:
                raw.send(request(chat(stream=True), authorization=f"Bearer {fleet.limited}"))
            while (await metrics(process))["cortex_gateway_limits_waits_total"] == asked:
                pass
            for raw in raws:
                raw.abort()
        finally:
            os.kill(fleet.servers.pid("redis"), signal.SIGCONT)
        await until(lambda: engine.open_answers == 0)
        await fleet.shared()
        with anyio.fail_after(30):
            while True:
                streams = [await fleet.stream(fleet.processes[number % 3]) for number in range(3)]
                for raw, _ in streams:
                    raw.abort()
                if sorted(status for _, status in streams) == [200, 200, 429]:
                    break
                await until(lambda: engine.open_answers == 0)
                await anyio.sleep(0.1)


async def streams_until(
    fleet: Fleet, engine: Upstream, shares: Sequence[int], open_answers: int
) -> list[Raw]:
    """Start streams of the free key, and wait until the engine has so many."""
    raws: list[Raw] = []
    for process, share in zip(fleet.processes, shares, strict=True):
        for _ in range(share):
            raw = await process.connect()
            raw.send(request(chat(stream=True), authorization=f"Bearer {fleet.free}"))
            raws.append(raw)
            fleet.raws.append(raw)
    await until(lambda: engine.open_answers >= open_answers, 30)
    return raws


async def test_an_engine_has_its_slots_over_all_processes(fleet: Fleet) -> None:
    async with Upstream(Reply(hold_after=1)) as engine:
        await fleet.prepare(engine)
        await fleet.publish(engine, concurrency_per_engine=6)
        await fleet.capped()
        engine.most_open = 0
        # One process may have them all; the others' requests stand in line.
        first = await streams_until(fleet, engine, (9, 0, 0), 6)
        await streams_until(fleet, engine, (0, 3, 3), 6)
        # What comes free goes to who waits, wherever.
        for raw in first:
            raw.abort()
        await until(lambda: engine.open_answers == 6, 30)
        engine.go.set()
        await until(lambda: engine.open_answers == 0, 30)
        assert engine.most_open == 6
        # Idle slots are given back: another process has them all.
        engine.go.clear()
        await streams_until(fleet, engine, (0, 0, 7), 6)
        engine.go.set()
        await until(lambda: engine.open_answers == 0, 30)
        assert engine.most_open == 6


async def test_slots_of_an_engine_that_a_killed_process_had_are_free_again(
    fleet: Fleet, tmp_path: Path
) -> None:
    async with Upstream(Reply(hold_after=1)) as engine:
        killed = fleet.another(tmp_path)
        await fleet.prepare(engine)
        await killed.start()
        await fleet.publish(engine, concurrency_per_engine=2)
        await fleet.shared(killed)
        await fleet.capped(killed)
        held = [await fleet.stream(killed, fleet.free) for _ in range(2)]
        assert [status for _, status in held] == [200, 200]
        waiting = await streams_until(fleet, engine, (1, 0, 1), 2)
        killed.kill()
        async with asyncio.timeout(60):
            for raw in waiting:
                assert parse(await raw.reader.readuntil(b"\r\n\r\n"))[0] == 200
        engine.go.set()
        await fleet.shared()
