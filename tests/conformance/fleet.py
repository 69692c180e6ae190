"""A gateway of a fleet whose models have no engine: `python -m tests.conformance.fleet FOLDER [NAME KEY]...`.

It prints its address, and serves until its standard input ends. A process of its own, for it wants signals.
"""

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import anyio
from anyio.streams.text import TextReceiveStream

from tests.conformance.scenario import Run
from tests.integration.gateway.harness import key_record, route, standing


@asynccontextmanager
async def fleet(folder: Path, runs: Sequence[Run]) -> AsyncGenerator[str]:
    """Its address, with these runs' models and keys."""
    words = [word for run in runs for word in (run.model, run.key)]
    command = [sys.executable, "-m", "tests.conformance.fleet", str(folder), *words]
    async with await anyio.open_process(command, stdin=PIPE, stdout=PIPE, stderr=None) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with anyio.fail_after(60):
            address = await TextReceiveStream(process.stdout).receive()
        yield address.strip()
        await process.stdin.aclose()
        with anyio.fail_after(30):
            await process.wait()


async def _serve(folder: Path, words: Sequence[str]) -> None:
    pairs = list(zip(words[::2], words[1::2], strict=True))
    routes = [route(name=name, state="loading") for name, _ in pairs]
    keys = [key_record(key, id=number, name=name) for number, (name, key) in enumerate(pairs, 1)]
    async with standing(folder, *routes, keys=keys) as stand:
        print(stand.url, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    anyio.run(_serve, Path(sys.argv[1]), sys.argv[2:])
