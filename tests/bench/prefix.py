"""Prefix balancing against smg: engines with simulated caches, conversations that share system prompts.

`python -m tests.bench.prefix [--seeds 5] [--loads 0.5 0.75]`: about 20 minutes. With each seed every router
sends the very same load to fresh engines, one router after the other, in an order that changes with the seed.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from tests.bench.load import KEY
from tests.bench.machine import describe, percentile
from tests.bench.prefix_client import send
from tests.bench.prefix_engine import BLOCK_TOKENS, seconds
from tests.bench.prefix_load import CHARS_PER_TOKEN, Load, Shape
from tests.bench.prefix_routers import OURS, SMG, SMG_VERSION, problem_with_smg, router
from tests.bench.processes import free_port, running
from tests.bench.tables import Row, bars, table

ENGINES = 4
WARM_UP = 300  # turns that fill the caches, and are not counted
_CACHE_TOKENS = 40_000  # of one engine; all that is said in a run is about eight times that


PAGE = Path(__file__).parents[2] / "docs/benchmarks/prefix.md"
_OPENING = """\
# Which engine gets a request

By `make bench-prefix`, {today}. Four engines keep the newest 40,000 tokens that they read, in blocks of 16,
and read what is not among them one request after the other, as prefill does. 250 conversations of several
turns share 16 system prompts, a few of which are in most of them (Zipf); turns come as a Poisson process, and
their tokens are about eight times one engine's cache. Saturation is where engines would always be busy, if
each had cached all that was ever sent to any. With each seed every router gets the very same load with fresh
engines. TTFT is the time to the first token; the first 300 turns are not counted.

"prefix", "least" and "round_robin" are Cortex's gateway with that `balance`.

"""


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Times to the first token, in milliseconds; `busiest_*`: the busiest engine's over the mean."""

    hit_rate: float
    mean: float
    p50: float
    p95: float
    busiest_requests: float
    busiest_prefill: float
    busy: float

    def cells(self) -> list[str]:
        """As they stand in the table."""
        rates = [f"{self.busiest_requests:.2f}", f"{self.busiest_prefill:.2f}", f"{self.busy:.2f}"]
        return [f"{self.hit_rate:.3f}", f"{self.mean:.0f}", f"{self.p50:.0f}", f"{self.p95:.0f}", *rates]


_HEAD = ("hit rate", "TTFT mean, ms", "p50", "p95", "busiest / mean, requests", "prefill", "engines busy")


def main(arguments: list[str]) -> int:
    """Always 0: a benchmark reports, it does not judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.prefix")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.75])
    parser.add_argument("--routers", nargs="+", default=[*OURS, SMG])
    parser.add_argument("--cache-tokens", type=int, default=_CACHE_TOKENS)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} under docs/benchmarks")
    chosen = parser.parse_args(arguments)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        print(text, flush=True)

    tell(f"```\n{describe()}\n```\n")
    names: list[str] = chosen.routers
    if SMG in names:
        problem = problem_with_smg()
        tell(f"Left out: {problem}" if problem else f"smg {SMG_VERSION} is started with its defaults.")
        if problem:
            names.remove(SMG)
    for share in chosen.loads:
        results: dict[str, list[Result]] = {name: [] for name in names}
        for seed in range(chosen.seeds):
            load = Load.make(seed, Shape(), share * saturation(seed))
            for place in range(len(names)):
                name = names[(place + seed) % len(names)]
                result = uvloop.run(_run(name, load, chosen.cache_tokens))
                results[name].append(result)
                print(f"# {share:.0%}, seed {seed}, {name}:", *result.cells(), file=sys.stderr, flush=True)
        _report(tell, share, results)
    if chosen.write:
        PAGE.write_text(_OPENING.format(today=datetime.now(UTC).date()) + "\n".join(told) + "\n")
    return 0


def saturation(seed: int, shape: Shape | None = None) -> float:
    """Requests/s at which engines are always busy, if each had in its cache all that was ever sent to any."""
    load = Load.make(seed, shape or Shape(), 1.0)
    seen: set[int] = set()
    took = 0.0
    for turn in load.turns:
        system, _ = load.conversations[turn.conversation]
        *before, last = (len(f"<{m['role']}>{m['content']}") for m in load.messages(turn))
        cached = sum(before) if turn.turn or system in seen else 0
        seen.add(system)
        blocks = cached // CHARS_PER_TOKEN // BLOCK_TOKENS * BLOCK_TOKENS
        took += seconds((sum(before) + last) // CHARS_PER_TOKEN - blocks)
    return ENGINES * len(load.turns) / took


async def _run(name: str, load: Load, cache_tokens: int) -> Result:
    cores = frozenset(os.sched_getaffinity(0))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cortex-bench-")))
        ports: list[int] = []
        for number in range(ENGINES):
            ports.append(free_port())
            command = [sys.executable, "-m", "tests.bench.prefix_engine", str(ports[-1]), str(cache_tokens)]
            stack.enter_context(running(command, folder / f"engine-{number}.log", cores=cores))
        await asyncio.gather(*(_until_there(port) for port in ports))
        _, port = stack.enter_context(router(name, [f"http://127.0.0.1:{port}" for port in ports], folder))
        await _until_there(port)
        marks: list[tuple[float, list[dict[str, float]]]] = []

        def mark() -> None:
            # In the loop that sends: it must not take long.
            stats: list[dict[str, float]] = [json.loads(_get(each, "/stats")) for each in ports]
            marks.append((time.monotonic(), stats))

        times = await send(load, port, WARM_UP, mark)
        mark()
        (began, before), (ended, after) = marks
        return _result(times, ended - began, before, after)


def _result(
    times: list[float], took: float, before: list[dict[str, float]], after: list[dict[str, float]]
) -> Result:
    def counted(name: str) -> list[float]:
        return [new[name] - old[name] for old, new in zip(before, after, strict=True)]

    requests, work = counted("requests"), counted("busy_seconds")
    return Result(
        hit_rate=sum(counted("cached_tokens")) / sum(counted("prompt_tokens")),
        mean=statistics.fmean(times) * 1e3,
        p50=percentile(times, 0.5) * 1e3,
        p95=percentile(times, 0.95) * 1e3,
        busiest_requests=max(requests) / statistics.fmean(requests),
        busiest_prefill=max(work) / statistics.fmean(work),
        busy=sum(work) / took / ENGINES,
    )


def _get(port: int, path: str) -> bytes:
    url, headers = f"http://127.0.0.1:{port}{path}", {"authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
        return answer.read()


async def _until_there(port: int) -> None:
    # Until it lists the model: a router does when it has asked its engines.
    async with asyncio.timeout(60):
        while True:
            try:
                if b'"m"' in await asyncio.to_thread(_get, port, "/v1/models"):
                    return
            except OSError:
                pass
            await asyncio.sleep(0.05)


def _report(tell: Callable[[str], None], share: float, results: dict[str, list[Result]]) -> None:
    seeds = len(next(iter(results.values())))
    tell(f"\n## At {share:.0%} of saturation\n\nMedians of {seeds} seeds:\n")
    rows = [[name, *_median(found).cells()] for name, found in results.items()]
    tell(table(("router", *_HEAD), rows))
    if SMG not in results:
        return
    ratios = {name: _ratios(found, results[SMG]) for name, found in results.items() if name != SMG}
    tell(f"\nMedians of the ratios to {SMG} with the same seed:\n")
    head = ("router", "hit rate", "TTFT mean", "p50", "p95")
    tell(table(head, [[name, *(f"{ratio:.2f}" for ratio in found[:4])] for name, found in ratios.items()]))
    if "prefix" in ratios:
        hit_rate, mean, _, p95 = ratios["prefix"][:4]
        busiest = _median(results["prefix"]).busiest_requests
        tell("")
        rows = [
            Row("hit rate", hit_rate, 1.0, 1.0, form="{:.3f} x", least=True),
            Row("mean time to first token", mean, 0.95, 0.85),
            Row("p95 of it", p95, 0.9, 0.75),
            Row("busiest replica / mean", busiest, 1.25, 1.25, form="{:.2f}"),
        ]
        tell(bars(rows))


def _fields(result: Result) -> list[float]:
    return [getattr(result, name) for name in Result.__dataclass_fields__]


def _median(found: list[Result]) -> Result:
    return Result(*map(statistics.median, zip(*map(_fields, found), strict=True)))


def _ratios(found: list[Result], base: list[Result]) -> list[float]:
    pairs = zip(map(_fields, found), map(_fields, base), strict=True)
    ratios = [[ours / theirs for ours, theirs in zip(a, b, strict=True)] for a, b in pairs]
    return [statistics.median(column) for column in zip(*ratios, strict=True)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
