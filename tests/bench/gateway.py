"""What the gateway costs, alone and against others: `python -m tests.bench.gateway [PART ...]`.

Everything stands at once; gateways are pinned to one core, the load and the engine to the others. CPU is of
the gateway's processes, from schedstat; figures are medians over rounds in which all take turns in shuffled
order, and ratios are medians of the ratios within each round.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import uvloop

from tests.bench import aborts, at_rest, instructions, many_streams, peers, tokens, versus, versus_tables
from tests.bench.machine import describe
from tests.bench.ours import Rig
from tests.bench.processes import Cores, go_first
from tests.bench.tables import Section, bars
from tests.servers import run_servers

PAGE = Path(__file__).parents[2] / "docs/benchmarks/gateway.md"
PARTS = ("versus", "tokens", "streams", "aborts", "rest")
INSTRUCTIONS = "instructions"
_LOADS = [*(load.name for load in versus.LOADS), versus.STEADY]


def main(words: list[str]) -> int:
    """Always 0: a benchmark reports, it does not judge."""
    parser = _parser()
    chosen = parser.parse_args(words)
    if chosen.quick:
        chosen.rounds, chosen.peers, chosen.idle_seconds, chosen.leavers = 1, "", 2.0, 50
    about, cores = _about(), Cores.choose()
    os.sched_setaffinity(0, cores.rest)
    if chosen.first:
        go_first()
    print(about, flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="cortex-bench-", ignore_cleanup_errors=True) as folder,
        run_servers(Path(folder) / "home") as servers,
    ):
        sections = uvloop.run(_measure(chosen, Rig(Path(folder), servers, cores)))
    print("\n" + "\n".join(section.markdown() for section in sections))
    if chosen.json:
        plain = {section.title: section.plain for section in sections}
        chosen.json.write_text(json.dumps(plain, indent=1))
    if chosen.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(sections, about))
        print(f"written: {PAGE}")
    return 0


async def _measure(chosen: argparse.Namespace, rig: Rig) -> list[Section]:
    sections: list[Section] = []
    parts: Sequence[str] = chosen.parts or PARTS
    if "versus" in parts:
        found, missing = peers.available([name for name in chosen.peers.split(",") if name])
        for name, why in missing.items():
            print(f"left out: {name}: {why}", flush=True)
        loads = [load for load in _LOADS if not chosen.only or load in chosen.only.split(",")]
        results = await versus.compare(
            rig, found, rounds=chosen.rounds, loads=loads, idle_seconds=chosen.idle_seconds
        )
        sections.append(versus_tables.section(results))
    if "tokens" in parts:
        sections.append(await tokens.measure(rig, rounds=chosen.rounds))
    if "streams" in parts:
        sections.append(await many_streams.measure(rig, rounds=min(3, chosen.rounds)))
    if "aborts" in parts:
        sections.append(await aborts.measure(rig, leavers=chosen.leavers))
    if "rest" in parts:
        sections.append(await at_rest.measure(rig, seconds=3 * chosen.idle_seconds))
    if INSTRUCTIONS in parts:
        sections.append(await instructions.measure(rig, keep=chosen.keep))
    return sections


def page(sections: Sequence[Section], about: str) -> str:
    """The whole page: figures that have a bar in one table, then each part's own tables."""
    rows = [row for section in sections for row in section.rows]
    parts = [Section(section.title, [], section.text).markdown() for section in sections]
    when = datetime.now(UTC).date().isoformat()
    head = f"# What the gateway costs\n\nBy `make bench-gateway`, {when}, on:\n\n```\n{about}\n```\n"
    return "\n".join([head, _HOW, bars(rows) + "\n", *parts])


_HOW = """\
All gateways stand at once, pinned to one core; the load, the mock engine (`tests/fakes/mock_engine.py`),
Redis and NATS run on the other. In each round all take their turn with each load, in shuffled order. CPU is
that of a gateway's processes with all their threads, from schedstat, until 0.6 s after the last answer, so
that what is done behind (usage to NATS) is in it. Figures are medians over the rounds, ratios the medians
of the ratios within each round (in brackets: the least of all rounds against the least): on a machine that
others use, only those mean anything. "The cheapest router" is the one in Rust whose median is least under
that load; which one it was is told.

"cortex" is the compiled form (`make native`), where it is there. It runs with everything on: key check,
limits, metering with journal to NATS, metrics, routes from Redis.
The others do less: the routers check no key and count no tokens, nginx only passes bytes on. Loads: prompts
of 300 bytes, 32 KB and 256 KB over 16 connections, as fast as answers come; 100 streams of 100 events at
50/s; 20 streams whose engine writes an event each whenever it can ("flat out"); 300 requests/s, sent
whether answered or not, each gateway's time less that of the engine alone.
"""


def _about() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("uvloop", "httptools", "msgspec"))
    return f"{describe()}, {versions}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gateway", description=__doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"of: {', '.join(PARTS)}; default: all of them; besides: {INSTRUCTIONS}",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=",".join(peers.NAMES), help="names, by commas; empty: none")
    parser.add_argument("--only", default="", help=f"loads, by commas, of: {', '.join(_LOADS)}")
    parser.add_argument("--quick", action="store_true", help="the gateway alone, one round")
    parser.add_argument("--leavers", type=int, default=400, help="clients that leave their streams")
    parser.add_argument("--idle-seconds", type=float, default=10.0)
    parser.add_argument("--first", action="store_true", help="go before whatever else runs here (as root)")
    parser.add_argument("--keep", type=Path, help=f"a folder for callgrind's dumps, of {INSTRUCTIONS}")
    parser.add_argument("--json", type=Path, help="a file for everything that was measured")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} under docs/benchmarks")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
