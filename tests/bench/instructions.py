"""How many instructions the gateway executes per request and event, by valgrind's callgrind.

Unlike time it is the same on a busy machine, and it says where: the dumps are kept with --keep. What the
gateway does by the clock meanwhile is measured idle, and taken off. The kernel's part is not in it.
"""

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.bench import load, ours
from tests.bench.processes import Process
from tests.bench.tables import Section, table

_UP_SECONDS = 300.0  # some forty times what it takes by itself
_WARM_UP = 160
_REQUESTS = 480
_EVENTS = 1_600
_PAUSE_MILLISECONDS = 200  # ten times as in the load of that name, since all takes some forty times as long
_TOTALS = re.compile(r"^(?:totals|summary): ([1-9]\d*)", re.MULTILINE)


async def measure(rig: ours.Rig, *, keep: Path | None) -> Section:
    """Requests of three sizes, and events of streams; `keep`: a folder for callgrind's dumps."""
    if shutil.which("valgrind") is None:
        return Section("Instructions", [], ["Not measured: there is no valgrind (apt-get install valgrind)."])
    dumps = keep or rig.folder / "callgrind"
    dumps.mkdir(parents=True, exist_ok=True)
    under = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={dumps / 'dump'}"]
    rows: list[list[str]] = []
    with rig.mock_engine(name="instructions-engine") as (_, engine_port):
        await ours.publish(rig.servers, [f"http://127.0.0.1:{engine_port}"])
        with rig.gateway(name="instructions", under=under, up_seconds=_UP_SECONDS) as (process, port):
            await ours.until_it_serves(process, port, _UP_SECONDS)
            counter = _Counter(process, dumps)
            for name, unit, count, run in _loads(port):
                await run(_WARM_UP)
                began = time.perf_counter()
                total = await counter.count(lambda run=run, count=count: run(count))
                took = time.perf_counter() - began
                idle = await counter.count(lambda took=took: asyncio.sleep(took))
                rows.append([name, unit, f"{max(0, total - idle) / count:,.0f}"])
    return Section("Instructions", [], [table(("load", "unit", "instructions"), rows)], {"rows": rows})


type _Load = tuple[str, str, int, Callable[[int], Awaitable[object]]]


def _loads(port: int) -> list[_Load]:
    async def events(count: int) -> None:
        data = load.stream_request(count // load.CONNECTIONS, _PAUSE_MILLISECONDS)
        clients = await load.connect(port, lambda: load.Client(data, 1), load.CONNECTIONS)
        await load.finish(clients)

    def requests(size: int) -> Callable[[int], Awaitable[object]]:
        return lambda count: load.ask(port, load.request(size), count)

    sizes = (("300 B", 300), ("32 KB", 32_000), ("256 KB", 256_000))
    return [
        *((name, "request", _REQUESTS, requests(size)) for name, size in sizes),
        ("paced", "event", _EVENTS, events),
    ]


class _Counter:
    """Instructions while something runs."""

    def __init__(self, process: Process, dumps: Path) -> None:
        self._process = process
        self._dumps = dumps

    async def count(self, run: Callable[[], Awaitable[object]]) -> int:
        before = set(self._dumps.iterdir())
        await self._control("--zero")
        await self._control("--instr=on")
        await run()
        await self._control("--instr=off")
        await self._control("--dump")
        new = [path for path in self._dumps.iterdir() if path not in before]
        return sum(int(found[1]) for path in new if (found := _TOTALS.search(path.read_text())))

    async def _control(self, word: str) -> None:
        command = ["callgrind_control", word, str(self._process.pid)]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
