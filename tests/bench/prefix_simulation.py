"""The prefix benchmark in virtual time: our choosers on its load and engines, in seconds instead of minutes.

`python -m tests.bench.prefix_simulation [--balance prefix] [--gateways 2 --apart]`, for trying rules and
constants. Turns do not wait for the answers before them, and smg is only in the real one.
"""

import argparse
import heapq
import itertools
import random
import statistics
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cortex_gateway import affinity
from cortex_gateway.affinity import Memory
from cortex_gateway.balance import Affinity, Chooser, Health
from cortex_gateway.choosing import Choosers

from tests.bench.machine import percentile
from tests.bench.prefix import ENGINES, WARM_UP, saturation
from tests.bench.prefix_client import body_of
from tests.bench.prefix_engine import PAUSE_SECONDS, Cache, seconds
from tests.bench.prefix_load import CHARS_PER_TOKEN, TOKEN, Load, Shape

_MEMORY_BYTES = 4 << 20


@dataclass(slots=True)
class _Request:
    arrived: float
    counts: bool
    text: str
    affinity: Affinity
    endpoint: Health


class _Engine:
    # Reads one prompt after the other, as tests.bench.prefix_engine does.
    def __init__(self, cache_tokens: int) -> None:
        self.cache = Cache(cache_tokens)
        self.queue: deque[_Request] = deque()
        self.requests = 0


class Simulation:
    """One load through some gateways to the engines."""

    def __init__(self, load: Load, gateways: list[Chooser[Health]], cache_tokens: int) -> None:
        self._load = load
        self._gateways = gateways
        self._engines = [_Engine(cache_tokens) for _ in gateways[0].endpoints]
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._chance = random.Random(1)
        self.times: list[float] = []
        self.cached = self.tokens = 0

    def run(self) -> None:
        """To the end."""
        for number, turn in enumerate(self._load.turns):
            self._at(turn.at, lambda now, number=number: self._arrive(now, number))
        while self._events:
            now, _, happen = heapq.heappop(self._events)
            happen(now)

    @property
    def busiest(self) -> float:
        """The busiest engine's requests over the mean."""
        counts = [engine.requests for engine in self._engines]
        return max(counts) / statistics.fmean(counts)

    def _at(self, at: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), happen))

    def _arrive(self, now: float, number: int) -> None:
        turn = self._load.turns[number]
        gateway = self._chance.choice(self._gateways)
        bound = affinity.prompt(body_of(self._load, turn))
        endpoint = gateway.pick(now, (), bound)
        assert endpoint is not None
        endpoint.outstanding += 1
        engine = self._engines[list(gateway.endpoints).index(endpoint)]
        text = "".join(f"<{m['role']}>{m['content']}" for m in self._load.messages(turn))
        engine.queue.append(_Request(now, number >= WARM_UP, text, bound, endpoint))
        engine.requests += 1
        if len(engine.queue) == 1:
            self._read(now, engine)

    def _read(self, now: float, engine: _Engine) -> None:
        request = engine.queue[0]
        tokens = len(request.text) // CHARS_PER_TOKEN
        cached = engine.cache.take(request.text)
        if request.counts:
            self.cached += cached
            self.tokens += tokens
        self._at(now + seconds(tokens - cached), lambda now: self._has_read(now, engine))

    def _has_read(self, now: float, engine: _Engine) -> None:
        request = engine.queue.popleft()
        request.affinity.over()
        if request.counts:
            self.times.append(now - request.arrived)
        answer = self._load.shape.answer_tokens
        self._at(now + answer * PAUSE_SECONDS, lambda _: self._answered(engine, request))
        if engine.queue:
            self._read(now, engine)

    def _answered(self, engine: _Engine, request: _Request) -> None:
        request.endpoint.outstanding -= 1
        engine.cache.take(f"{request.text}<assistant>{TOKEN * self._load.shape.answer_tokens}")


def gateways(balance: str, count: int, *, apart: bool) -> list[Chooser[Health]]:
    """That many, each with its own view of the load; `apart`: and with its own memory of prompts."""
    shared = Memory.of(_MEMORY_BYTES)
    made: list[Chooser[Health]] = []
    for number in range(count):
        chance = random.Random(number)
        choosers = Choosers(chance, _MEMORY_BYTES)
        if not apart:
            choosers.share(shared)
        endpoints = [Health(1, f"engine {engine}") for engine in range(ENGINES)]
        made.append(choosers.make(balance, endpoints, 0, Chooser(endpoints, 0, chance)))
    return made


def main(arguments: list[str]) -> int:
    """Always 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.prefix_simulation")
    parser.add_argument("--balance", nargs="+", default=["prefix", "least", "round_robin"])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache-tokens", type=int, default=40_000)
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--apart", action="store_true")
    chosen = parser.parse_args(arguments)
    print("medians: hit rate | time to first token, mean and p95 in ms | busiest engine / mean")
    for share in chosen.loads:
        for balance in chosen.balance:
            rows: list[tuple[float, ...]] = []
            for seed in range(chosen.seeds):
                load = Load.make(seed, Shape(), share * saturation(seed))
                made = gateways(balance, chosen.gateways, apart=chosen.apart)
                one = Simulation(load, made, chosen.cache_tokens)
                one.run()
                times = statistics.fmean(one.times) * 1e3, percentile(one.times, 0.95) * 1e3
                rows.append((one.cached / one.tokens, *times, one.busiest))
            hit, mean, p95, busiest = map(statistics.median, zip(*rows, strict=True))
            print(f"{share:.0%} {balance:12} {hit:.3f} | {mean:6.0f} {p95:6.0f} | {busiest:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
