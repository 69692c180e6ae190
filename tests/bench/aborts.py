"""Client gone, engine told: from a client's closing its stream to the engine's seeing its connection end.

Beside other streams, so that the gateway is at work; clients leave at odd moments, half of them by a clean
close and half by a reset.
"""

import asyncio
import json
import random
import time
import urllib.request
from typing import cast

from tests.bench import ours
from tests.bench.load import Client, connect, stream_request
from tests.bench.machine import percentile
from tests.bench.tables import Row, Section, table

_OTHERS = 100
_SEED = 20
_WAIT_SECONDS = 10.0
_EVENTS_FOR_EVER = 1_000_000


class _Leaver(Client):
    def __init__(self, data: bytes) -> None:
        super().__init__(data, 1)
        self.streaming = asyncio.Event()
        self.left_at = 0

    def data_received(self, data: bytes) -> None:
        if b"token" in data:
            self.streaming.set()

    def leave(self, *, clean: bool) -> None:
        self.done.cancel()
        self.left_at = time.monotonic_ns()
        if clean:
            self._transport.close()
        else:
            self._transport.abort()


async def measure(rig: ours.Rig, *, leavers: int) -> Section:
    """`leavers` clients, one after the other."""
    with rig.mock_engine(name="aborts-engine") as (_, engine_port):
        await ours.publish(rig.servers, [f"http://127.0.0.1:{engine_port}"])
        with rig.gateway(name="aborts-gateway") as (process, port):
            await ours.until_it_serves(process, port)
            direct = await _leave(engine_port, engine_port, leavers // 2, "direct")
            through = await _leave(port, engine_port, leavers, "through")
    p99 = percentile(through, 0.99) * 1e3
    row = Row("client gone, engine sees the abort: p99", p99, 20, 20, "{:.2f} ms")
    lines = [
        [name, *(f"{percentile(taken, share) * 1e3:.2f}" for share in (0.5, 0.99, 1.0)), str(len(taken))]
        for name, taken in (("direct", direct), ("through", through))
    ]
    text = table(("abort, ms", "p50", "p99", "worst", "clients"), lines)
    return Section("Clients that leave", [row], [text], {"through": through, "direct": direct})


async def _leave(port: int, engine_port: int, count: int, name: str) -> list[float]:
    moments = random.Random(_SEED)
    data = stream_request(_EVENTS_FOR_EVER, 20)
    others = await connect(port, lambda: Client(data, 1), _OTHERS)
    left: dict[str, int] = {}
    for number in range(count):
        data = stream_request(_EVENTS_FOR_EVER, 5, words=f" {name}-{number}")
        leaver = (await connect(port, lambda data=data: _Leaver(data), 1))[0]
        async with asyncio.timeout(_WAIT_SECONDS):
            await leaver.streaming.wait()
        await asyncio.sleep(moments.uniform(0, 0.02))
        leaver.leave(clean=number % 2 == 0)
        left[f"{name}-{number}"] = leaver.left_at
    for other in others:
        other.done.cancel()
        other.close()
    return await _seen(engine_port, left)


async def _seen(engine_port: int, left: dict[str, int]) -> list[float]:
    async with asyncio.timeout(_WAIT_SECONDS):
        while True:
            given_up = dict(await asyncio.to_thread(_given_up, engine_port))
            if left.keys() <= given_up.keys():
                return [(given_up[name] - at) / 1e9 for name, at in left.items()]
            await asyncio.sleep(0.1)


def _given_up(engine_port: int) -> list[tuple[str, int]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{engine_port}/mock/given-up", timeout=5) as answer:
        return cast("list[tuple[str, int]]", json.load(answer))
