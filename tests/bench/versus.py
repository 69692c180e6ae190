"""The gateway against others under the same loads: all take turns in rounds; ratios are within a round."""

import asyncio
import random
import statistics
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import cortex_gateway

from tests.bench import ours
from tests.bench.load import (
    LoadFailed,
    ask,
    request,
    steady,
    stream_request,
)
from tests.bench.machine import percentile
from tests.bench.peers import Peer
from tests.bench.processes import Process, cpu_between, free_port, running, tail, wait_for_port

OURS = "cortex"
INTERPRETED = "cortex, interpreted"
DIRECT = "direct"
_SETTLE_SECONDS = 0.6
_RATE = 300.0
_STEADY_SECONDS = 4.0
_UP_SECONDS = 180.0
_SEED = 20_000


@dataclass(frozen=True, slots=True)
class Load:
    """`run(port, count)` returns units per second; a slow gateway gets `count_slow` of them."""

    name: str
    unit: str
    count: int
    count_slow: int
    run: Callable[[int, int], Awaitable[float]]


def _requests(size: int) -> Callable[[int, int], Awaitable[float]]:
    data = request(size)
    return lambda port, count: ask(port, data, count)


async def _paced(port: int, count: int) -> float:
    streams = count // 100
    return 100 * await ask(port, stream_request(100, 20), streams, connections=streams)


async def _flat_out(port: int, count: int) -> float:
    events = count // 20
    return events * await ask(port, stream_request(events), 20, connections=20)


LOADS = (
    Load("300 B", "request", 9600, 160, _requests(300)),
    Load("32 KB", "request", 7200, 160, _requests(32_000)),
    Load("256 KB", "request", 1280, 80, _requests(256_000)),
    Load("paced", "event", 10_000, 1_000, _paced),
    Load("flat out", "event", 40_000, 2_000, _flat_out),
)
STEADY = "steady"

# Of each gateway one value a round, None where it failed; and that of each load.
type Series = dict[str, list[float | None]]
type Table = dict[str, Series]


@dataclass(slots=True)
class Contender:
    """A gateway under test; `process` is None for the engine itself."""

    name: str
    version: str
    port: int
    process: Process | None
    rust: bool = False
    slow: bool = False


@dataclass(slots=True)
class Results:
    """What was measured.

    `cost` is microseconds of CPU per unit, `rate` units per second, `latency` (p50, p99) seconds at the
    steady rate, `idle` the share of a core at rest.
    """

    contenders: list[Contender] = field(default_factory=list["Contender"])
    cost: Table = field(default_factory=dict[str, Series])
    rate: Table = field(default_factory=dict[str, Series])
    latency: dict[str, list[tuple[float, float] | None]] = field(
        default_factory=dict[str, list[tuple[float, float] | None]]
    )
    idle: dict[str, float] = field(default_factory=dict[str, float])
    memory_mib: dict[str, float] = field(default_factory=dict[str, float])

    def put(self, where: Table, load: str, name: str, value: float | None) -> None:
        """One round's value."""
        where.setdefault(load, {}).setdefault(name, []).append(value)

    def median(self, values: Series, name: str) -> float | None:
        """Over the rounds that did not fail."""
        there = [value for value in values.get(name, []) if value is not None]
        return statistics.median(there) if there else None

    def cheapest(self, load: str, names: list[str]) -> str | None:
        """Of these the one whose median cost is least."""
        costs = {name: self.median(self.cost.get(load, {}), name) for name in names}
        there = {name: cost for name, cost in costs.items() if cost is not None}
        return min(there, key=lambda name: there[name]) if there else None

    def ratio(self, load: str, other: str) -> float | None:
        """Median over the rounds of our cost to the other's in the same round."""
        costs = self.cost.get(load, {})
        pairs = zip(costs.get(OURS, []), costs.get(other, []), strict=True)
        return _median([mine / its for mine, its in pairs if mine is not None and its])

    def least_ratio(self, load: str, other: str) -> float | None:
        """Our least cost in any round to the other's: nearer to what each costs on a machine of its own."""
        costs = self.cost.get(load, {})
        mine, its = ([v for v in costs.get(name, []) if v is not None] for name in (OURS, other))
        return min(mine) / min(its) if mine and its else None

    def added(self, name: str, which: int) -> list[float | None]:
        """Per round: the seconds that it adds at p50 (0) or p99 (1), direct's subtracted."""
        pairs = zip(self.latency.get(name, []), self.latency.get(DIRECT, []), strict=True)
        return [a[which] - b[which] if a is not None and b is not None else None for a, b in pairs]

    def added_ratio(self, other: str, which: int) -> float | None:
        """Median over the rounds of what we add to what the other adds in the same round."""
        pairs = zip(self.added(OURS, which), self.added(other, which), strict=True)
        return _median(
            [mine / its for mine, its in pairs if mine is not None and its is not None and its > 0]
        )

    def best_added(self, names: list[str], which: int) -> str | None:
        """Of these the one that adds least, by its median."""
        there = {name: _median([v for v in self.added(name, which) if v is not None]) for name in names}
        told = {name: value for name, value in there.items() if value is not None}
        return min(told, key=lambda name: told[name]) if told else None


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


async def compare(
    rig: ours.Rig, peers: list[Peer], *, rounds: int, loads: list[str], idle_seconds: float
) -> Results:
    """Start everything, run all rounds, end everything. A peer that does not come up is left out, told so."""
    with ExitStack() as stack:
        engine, engine_port = stack.enter_context(rig.mock_engine())
        await ours.publish(rig.servers, [f"http://127.0.0.1:{engine_port}"])
        own, port = stack.enter_context(rig.gateway())
        results = Results([Contender(DIRECT, "", engine_port, None), Contender(OURS, "", port, own)])
        await ours.until_it_serves(own, port)
        if cortex_gateway.NATIVE:
            plain, port = stack.enter_context(rig.gateway(name="interpreted", CORTEX_GATEWAY_NATIVE="0"))
            results.contenders.append(Contender(INTERPRETED, "", port, plain))
            await ours.until_it_serves(plain, port)
        results.contenders += await _start_peers(stack, rig, peers, engine_port)
        names = ", ".join(f"{each.name} {each.version}".strip() for each in results.contenders)
        print(f"standing: {names}", flush=True)
        for each in results.contenders:
            await _warm_up(each)
        order = random.Random(_SEED)
        for number in range(rounds):
            for load in LOADS:
                if load.name in loads:
                    for each in order.sample(results.contenders, len(results.contenders)):
                        await _measure(results, load, each)
            if STEADY in loads:
                for each in order.sample(results.contenders, len(results.contenders)):
                    await _measure_latency(results, each)
            print(f"round {number + 1} of {rounds}: {_line(results)}", flush=True)
        await _at_rest(results, idle_seconds)
        if not engine.alive:
            raise RuntimeError(f"the engine ended\n{tail(engine.log)}")
        return results


async def _start_peers(
    stack: ExitStack, rig: ours.Rig, peers: list[Peer], engine_port: int
) -> list[Contender]:
    started: list[tuple[Peer, Process, int]] = []
    for peer in peers:
        port = free_port()
        command, log = peer.command(rig.folder, port, engine_port), rig.folder / f"{peer.name}.log"
        process = stack.enter_context(running(command, log, cores=frozenset({rig.cores.gateway})))
        started.append((peer, process, port))
    up: list[Contender] = []
    for peer, process, port in started:
        try:
            wait_for_port(process, port, _UP_SECONDS)
            await ours.until_it_serves(process, port)
        except RuntimeError as error:
            print(f"left out: {peer.name}: {error}", flush=True)
            process.end()
        else:
            up.append(Contender(peer.name, peer.version, port, process, peer.rust, peer.slow))
    return up


async def _warm_up(each: Contender) -> None:
    for load in LOADS:
        await load.run(each.port, load.count_slow)


async def _measure(results: Results, load: Load, each: Contender) -> None:
    count = load.count_slow if each.slow else load.count
    before = each.process.cpu() if each.process is not None else {}
    cost: float | None = None
    rate: float | None = None
    try:
        rate = await load.run(each.port, count)
    except (LoadFailed, TimeoutError, OSError) as error:
        print(f"{each.name}, {load.name}: {error!r}", flush=True)
    else:
        # What a gateway still does for these requests after their answers is its cost, too.
        await asyncio.sleep(_SETTLE_SECONDS)
        if each.process is not None:
            cost = cpu_between(before, each.process.cpu()) / count * 1e6
    results.put(results.cost, load.name, each.name, cost)
    results.put(results.rate, load.name, each.name, rate)


async def _measure_latency(results: Results, each: Contender) -> None:
    told = results.latency.setdefault(each.name, [])
    if each.slow:
        told.append(None)
        return
    try:
        times = await steady(each.port, _RATE, _STEADY_SECONDS)
    except (LoadFailed, TimeoutError, OSError) as error:
        print(f"{each.name}, {STEADY}: {error!r}", flush=True)
        told.append(None)
    else:
        told.append((percentile(times, 0.5), percentile(times, 0.99)))


async def _at_rest(results: Results, seconds: float) -> None:
    processes = [(each.name, each.process) for each in results.contenders if each.process is not None]
    await asyncio.sleep(2)
    before = {name: process.cpu() for name, process in processes}
    await asyncio.sleep(seconds)
    for name, process in processes:
        results.idle[name] = cpu_between(before[name], process.cpu()) / seconds
        results.memory_mib[name] = process.resident_mib()


def _line(results: Results) -> str:
    told: list[str] = []
    for load, costs in results.cost.items():
        last = {name: values[-1] for name, values in costs.items()}
        told.append(f"{load} " + " ".join(f"{name[:6]} {v:.1f}" for name, v in last.items() if v is not None))
    return "; ".join(told)
