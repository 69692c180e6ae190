"""Tokens per second of a real llama.cpp through the gateway against direct, in interleaved rounds.

Clients run beside the gateway, so that the engine has its cores for itself both ways: clients that share them
are woken for each event that comes through, for all events of a step at once that come from there.
"""

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from cortex_llamacpp.tiny import write_tiny_model

from tests.bench import ours
from tests.bench.load import Client, LoadFailed, connect, finish, request
from tests.bench.processes import free_port, running, tail, wait_for_port
from tests.bench.tables import Row, Section, table

_STREAMS = 40
_TOKENS = 384
_UP_SECONDS = 60.0


class _Reader(Client):
    last = b""

    def on_body(self, data: bytes) -> None:
        self.last = (self.last + data)[-2000:]


async def measure(rig: ours.Rig, *, rounds: int) -> Section:
    """Both in turn; the first round of each is not counted."""
    rates: dict[str, list[float]] = {"direct": [], "through": []}
    async with _llamacpp(rig) as engine_port:
        await ours.publish(rig.servers, [f"http://127.0.0.1:{engine_port}"])
        with rig.gateway(name="tokens-gateway") as (process, port):
            await _until_generating(port, tail(process.log))
            os.sched_setaffinity(0, {rig.cores.gateway})
            for number in range(rounds + 1):
                pairs = [("direct", engine_port), ("through", port)]
                for name, at in pairs if number % 2 else reversed(pairs):
                    rate = await _rate(at)
                    if number:
                        rates[name].append(rate)
            os.sched_setaffinity(0, rig.cores.rest)
    share = statistics.median(
        through / direct for through, direct in zip(rates["through"], rates["direct"], strict=True)
    )
    row = Row(
        f"tokens/s through against direct, llama.cpp, {_STREAMS} streams",
        100 * share,
        98,
        99.5,
        "{:.1f} %",
        least=True,
    )
    lines = [
        [name, f"{statistics.median(of):,.0f}", f"{min(of):,.0f} to {max(of):,.0f}"]
        for name, of in rates.items()
    ]
    text = table(("tokens/s", "median", "rounds"), lines)
    return Section("A real engine", [row], [text], {"rates": rates})


@asynccontextmanager
async def _llamacpp(rig: ours.Rig) -> AsyncGenerator[int]:
    model = rig.folder / "tiny.gguf"
    await asyncio.to_thread(write_tiny_model, model)
    port = free_port()
    command = [
        *(sys.executable, "-m", "cortex_llamacpp.server", "--model", str(model), "--alias", "m"),
        *("--host", "127.0.0.1", "--port", str(port), "-t", str(len(rig.cores.rest))),
        *("--parallel", str(_STREAMS), "--ctx-size", str(_STREAMS * 512)),
    ]
    with running(command, rig.folder / "llamacpp.log", cores=rig.cores.rest) as process:
        wait_for_port(process, port, _UP_SECONDS)
        await _until_generating(port, tail(process.log))
        yield port


def _request(tokens: int) -> bytes:
    return request(200, start="Once upon a time", stream=True, max_tokens=tokens, ignore_eos=True)


async def _until_generating(port: int, log: str) -> None:
    until = time.monotonic() + _UP_SECONDS
    while True:
        try:
            await finish(list[Client](await connect(port, lambda: Client(_request(1), 1), 1)))
        except (OSError, LoadFailed) as error:
            if time.monotonic() > until:
                raise RuntimeError(f"llama.cpp does not answer: {error}\n{log}") from error
            await asyncio.sleep(0.2)
        else:
            return


async def _rate(port: int) -> float:
    data = _request(_TOKENS)
    began = time.perf_counter()
    readers = await connect(port, lambda: _Reader(data, 1), _STREAMS)
    await finish(list[Client](readers))
    taken = time.perf_counter() - began
    for reader in readers:
        # All tokens were made, so their number is known without counting events, of which one may hold many.
        if b'"finish_reason":"length"' not in reader.last.replace(b" ", b""):
            raise LoadFailed(f"a stream that is not whole: {reader.last!r}")
    return _STREAMS * _TOKENS / taken
