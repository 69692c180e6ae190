"""Hours of everything at once; did anything leak, was anything miscounted: `python -m tests.soak`.

Two gateway processes, three mock engines with ledgers, real Redis, NATS and Postgres, and the API that counts
usage. Prints a line every minute; exit status 1 if a check fails.
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import uvloop
from cortex_shared.contracts.routes import Endpoint, Route, RoutePolicy, RoutingTable
from cortex_shared.redis_connection import connect_redis
from cortex_shared.routing_store import RoutingStore

from tests.bench.machine import describe
from tests.bench.ours import Rig
from tests.bench.processes import Cores, Process, tail
from tests.fakes.ledger import Ledger
from tests.servers import ServersUnderTest, connect_postgres, run_servers
from tests.soak import api, books, watch
from tests.soak.chaos import Engines, Outages
from tests.soak.users import Diary, User

_SEED = 20_260
_USERS = 40
_NARROW_USERS = 6
_NARROW_CONCURRENCY = 4
_LIMITS = {"requests_per_minute": 1_000_000, "tokens_per_minute": 1_000_000_000}
_ENGINES = 3
_SAMPLE_SECONDS = 2.0
_SAMPLES_MIN = 100  # over a run
_SLOTS_SECONDS = 15.0  # longer than a lease lasts
_SETTLE_SECONDS = 60.0
_HELD_PERIODS = 1.5  # how long the API is held up before NATS is emptied
_GROWTH_MAX = 0.02
# A short run compares with minutes in which tables and buffers still come to their sizes.
_SHORT_MINUTES, _SHORT_GROWTH_MAX = 20, 0.05
# Shares of the run: memory is compared between two spans in which Redis and NATS are left alone.
_FIRST_SPAN = (1 / 6, 1 / 6 + 0.1)
_LAST_SPAN = (0.9, 1.0)


def main(words: Sequence[str]) -> int:
    """0 when every check holds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    chosen = parser.parse_args(words)
    signal.signal(signal.SIGTERM, _end)
    print(describe(), flush=True)
    try:
        failed = _soaked(chosen.minutes)
    except _NotStartedError as error:
        # Such as a port that somebody took a moment before: told, and tried once more.
        print(f"it did not start: {error}", flush=True)
        failed = _soaked(chosen.minutes)
    for line in failed:
        print(f"FAILED: {line}")
    print("soak: failed" if failed else "soak: every check holds")
    return 1 if failed else 0


def _end(*_: object) -> None:
    sys.exit(1)  # and so ends all that was started


class _NotStartedError(Exception):
    """The programs under test are not there, with what they said."""


def _soaked(minutes: float) -> list[str]:
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="cortex-soak-", ignore_cleanup_errors=True)
            )
        )
        servers = stack.enter_context(run_servers(folder / "home"))
        return uvloop.run(_soak(stack, Rig(folder, servers, Cores.choose()), minutes))


@dataclass(slots=True)
class _Stage:
    database: str
    engines: Engines
    outages: Outages
    gateways: list[tuple[Process, int]]
    diary: Diary
    memory: watch.Memory


async def _soak(stack: ExitStack, rig: Rig, minutes: float) -> list[str]:
    try:
        stage, keys = await _started(stack, rig, minutes)
    except Exception as error:
        said = "".join(f"\n-- {log.name}\n{tail(log)}" for log in sorted(rig.folder.glob("*.log")))
        raise _NotStartedError(f"{error!r}{said}") from error
    await _run(stage, keys, minutes)
    return await _checks(stage, keys, minutes)


async def _started(stack: ExitStack, rig: Rig, minutes: float) -> tuple[_Stage, list[str]]:
    servers = rig.servers
    database = await servers.fresh_database()
    running = stack.enter_context(api.run(rig, database.replace("postgresql:", "postgresql+asyncpg:", 1)))
    await running.until_ready()
    keys = [
        running.key(name, concurrency=concurrency, **_LIMITS)
        for name, concurrency in (("wide", 0), ("narrow", _NARROW_CONCURRENCY))
    ]
    engines = Engines(rig.folder, _ENGINES, rig.cores.rest)
    stack.callback(engines.close)

    async def publish() -> None:
        await _publish_routes(servers, engines.urls)

    await publish()
    gateways = [stack.enter_context(rig.gateway(name=f"gateway-{number}")) for number in range(2)]
    memory = watch.Memory([process for process, _ in gateways])
    outages = Outages(servers, publish, running.held, _HELD_PERIODS * _period(minutes))
    stage = _Stage(database, engines, outages, gateways, Diary(), memory)
    await _until_serving(stage)
    return stage, keys


async def _publish_routes(servers: ServersUnderTest, urls: list[str]) -> None:
    endpoints = [Endpoint(instance=f"soak-{number}", url=url) for number, url in enumerate(urls)]
    routes = [
        Route(
            name=name,
            model_id=number,
            task=task,
            engine="vllm",
            created=1,
            policy=RoutePolicy(concurrency=16, queue_max=64, queue_seconds=5),
            endpoints=endpoints,
        )
        for number, (name, task) in enumerate((("m", "chat"), ("e", "embedding")), 1)
    ]
    table = RoutingTable(term=1, version=time.time_ns(), written_at=datetime.now(UTC), routes=routes)
    redis = connect_redis(servers.redis_url)
    try:
        await RoutingStore(redis).replace(table)
    finally:
        await redis.aclose()


async def _until_serving(stage: _Stage) -> None:
    async with asyncio.timeout(_SETTLE_SECONDS):
        for _, port in stage.gateways:
            while not await watch.is_ready(port):
                await asyncio.sleep(0.1)


async def _run(stage: _Stage, keys: list[str], minutes: float) -> None:
    ports = [port for _, port in stage.gateways]
    wide, narrow = keys
    stop, calm, over = asyncio.Event(), asyncio.Event(), asyncio.Event()
    began = time.monotonic()

    def share() -> float:
        return (time.monotonic() - began) / (60 * minutes)

    async with asyncio.TaskGroup() as group:
        for number in range(_USERS):
            key = narrow if number < _NARROW_USERS else wide
            group.create_task(User(number, _SEED, key, ports, stage.diary).run(stop))
        others = [
            group.create_task(_sample(stage, began, over, min(_SAMPLE_SECONDS, 60 * minutes / _SAMPLES_MIN))),
            group.create_task(_outages(stage, share, minutes, calm)),
            group.create_task(_deaths(stage, minutes, calm)),
        ]
        await asyncio.sleep(60 * minutes * _LAST_SPAN[0])
        calm.set()
        await asyncio.sleep(60 * minutes * (_LAST_SPAN[1] - _LAST_SPAN[0]))
        stop.set()
        over.set()
        del others


async def _outages(stage: _Stage, share: Callable[[], float], minutes: float, calm: asyncio.Event) -> None:
    period = _period(minutes)
    while not await _set_within(calm, period):
        if not _FIRST_SPAN[0] - 0.05 <= share() <= _FIRST_SPAN[1]:
            await stage.outages.next()


async def _deaths(stage: _Stage, minutes: float, calm: asyncio.Event) -> None:
    dice = random.Random(_SEED)
    while not await _set_within(calm, 0.7 * _period(minutes)):
        await stage.engines.die_and_come_back(dice)


def _period(minutes: float) -> float:
    return min(40.0, max(6.0, 60 * minutes / 15))


async def _sample(stage: _Stage, began: float, over: asyncio.Event, period: float) -> None:
    told = 0
    print(
        f"{'minute':>6} {'requests':>9} {'whole':>8} {'told':>6} {'left':>6} {'refused':>7} {'unlike':>6}",
        end="",
    )
    print(f" {'deaths':>6} {'outages':>7} {'open':>5} {'journal':>8}  MiB of gateways", flush=True)
    while not await _set_within(over, period):
        minutes = (time.monotonic() - began) / 60
        memory = stage.memory.look(minutes)
        if minutes >= told + 1:
            told = int(minutes)
            await _tell(stage, told, memory)


async def _tell(stage: _Stage, minute: int, memory: list[float]) -> None:
    each = [await watch.metrics(port) for _, port in stage.gateways]
    counts = stage.diary.counts
    total = len(stage.diary.seen) + stage.diary.unseen
    opened = sum(of.get("cortex_gateway_in_flight_requests", 0) for of in each)
    journal = sum(of.get("cortex_gateway_journal_bytes", 0) for of in each)
    print(f"{minute:6} {total:9} {counts['whole']:8} {counts['told']:6} {counts['left']:6}", end="")
    print(f" {counts['refused']:7} {counts['problem']:6} {stage.engines.deaths:6}", end="")
    print(f" {len(stage.outages.done):7} {opened:5.0f} {journal:8.0f}", end="  ")
    print(" ".join(f"{value:.1f}" for value in memory), flush=True)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _checks(stage: _Stage, keys: list[str], minutes: float) -> list[str]:
    failed = [f"unlike anything that should be: {problem}" for problem in stage.diary.problems]
    failed += [f"a gateway ended: {process.log}" for process, _ in stage.gateways if not process.alive]
    if failed and not all(process.alive for process, _ in stage.gateways):
        return failed
    failed += await _until_none(lambda: _leaks(stage))
    verdict: books.Verdict | None = None

    async def wrong() -> list[str]:
        nonlocal verdict
        verdict = await _settled(stage)
        return verdict.wrong

    failed += await _until_none(wrong)
    assert verdict is not None
    print("\n".join(f"{value:12,}  {name}" for name, value in verdict.sums.items()))
    failed += await _slots(stage, keys[1])
    failed += stage.engines.problems() + [
        f"{process.log.name}: {line}"
        for process, _ in stage.gateways
        for line in process.log.read_text(errors="replace").splitlines()
        if ".bug" in line or "Traceback" in line
    ]
    spans = [(share[0] * minutes, share[1] * minutes) for share in (_FIRST_SPAN, _LAST_SPAN)]
    for number, (first, last) in enumerate(stage.memory.growth(*spans)):
        print(f"gateway {number}: {first:.1f} MiB, at the end {last:.1f} MiB: {last / first - 1:+.2%}")
        if last > first * (1 + (_GROWTH_MAX if minutes >= _SHORT_MINUTES else _SHORT_GROWTH_MAX)):
            failed.append(f"gateway {number} grew from {first:.1f} to {last:.1f} MiB")
    return failed


async def _until_none(look: Callable[[], Awaitable[list[str]]]) -> list[str]:
    until = time.monotonic() + _SETTLE_SECONDS
    while (found := await look()) and time.monotonic() < until:
        await asyncio.sleep(1)
    return found


async def _leaks(stage: _Stage) -> list[str]:
    found: list[str] = []
    for number, (_, port) in enumerate(stage.gateways):
        values = await watch.metrics(port)
        for name in (*watch.AT_REST, *watch.NEVER):
            if values.get(name):
                found.append(f"gateway {number}: {name} is {values[name]:.0f}")
    for number, port in enumerate(stage.engines.ports):
        if connections := await watch.open_connections(port):
            found.append(f"engine {number}: {connections} connections are open")
    return found


async def _settled(stage: _Stage) -> books.Verdict:
    connection = await connect_postgres(stage.database)
    try:
        query = "SELECT request_id, outcome, source, status, prompt_tokens, completion_tokens FROM usage"
        rows = cast("list[tuple[str, str, str, int, int, int]]", await connection.fetch(query))
    finally:
        await connection.close()
    entries = [entry for file in stage.engines.ledgers for entry in Ledger.read(file)]
    counted = [books.Counted(*row) for row in rows]
    return books.settle(entries, stage.diary.seen, counted, unseen=stage.diary.unseen)


async def _slots(stage: _Stage, key: str) -> list[str]:
    # All that a narrow key may have at once, on either gateway: a slot that had leaked would be missing.
    # What one has just given back it holds for a moment, so that the other may have to ask again.
    for number, (_, port) in enumerate(stage.gateways):
        until = time.monotonic() + _SLOTS_SECONDS
        while True:
            statuses = await watch.statuses_at_once(port, key, _NARROW_CONCURRENCY)
            if statuses == [200] * _NARROW_CONCURRENCY:
                break
            if time.monotonic() > until:
                return [f"gateway {number}: a key has lost slots: {statuses}"]
            await asyncio.sleep(1)
    return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
