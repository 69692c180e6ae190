"""A thousand streams at 20 events/s through one gateway process on one core: how late events are, its memory.

An event is late by its arrival minus the time at which the engine's schedule had it, so the engine's own
lateness and the load's are in it; they are what the same streams are late by without a gateway.
"""

import asyncio
import gc
import statistics
import time

from tests.bench import ours
from tests.bench.load import Client, finish, stream_request
from tests.bench.machine import percentile
from tests.bench.processes import Process
from tests.bench.tables import Row, Section, table

STREAMS = 1000
_PAUSE_MILLISECONDS = 50
_SECONDS = 10.0
# Not a multiple of the pause, so that streams do not fall into step.
_RAMP_SECONDS = 2.017
_STAMP = b'"content":"'
_STAMP_DIGITS = 16


class _Reader(Client):
    # Without an HTTP parser: here the load shares a core with the engine, and its own cost makes events late.
    late: list[float]
    since: int

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        at = data.find(_STAMP)
        while at >= 0:
            begin = at + len(_STAMP)
            digits = data[begin : begin + _STAMP_DIGITS]
            if digits.isdigit() and (due := int(digits)) >= self.since:
                self.late.append((now - due) / 1e9)
            at = data.find(_STAMP, begin)
        if data.endswith(b"\r\n0\r\n\r\n"):
            if b"[DONE]" in data and not self.done.done():
                self.done.set_result(None)
            else:
                self._fail(f"a stream that is not whole: {data[-200:]!r}")
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            self._fail(f"refused: {data[:200]!r}")


async def measure(rig: ours.Rig, *, rounds: int, seconds: float = _SECONDS) -> Section:
    """Direct and through the gateway in turn."""
    late: dict[str, list[list[float]]] = {"direct": [], "through": []}
    with rig.mock_engine(name="streams-engine") as (_, engine_port):
        await ours.publish(rig.servers, [f"http://127.0.0.1:{engine_port}"])
        with rig.gateway(name="streams-gateway") as (process, port):
            await ours.until_it_serves(process, port)
            peak = process.resident_mib()
            for _ in range(rounds):
                late["direct"].append((await _streams(engine_port, None, seconds))[0])
                through, memory = await _streams(port, process, seconds)
                late["through"].append(through)
                peak = max(peak, memory)
    values = {
        (name, share): statistics.median(percentile(each, share) for each in of)
        for name, of in late.items()
        for share in (0.5, 0.99, 1.0)
    }
    p99 = values["through", 0.99]
    added = p99 - values["direct", 0.99]
    figure = f"{STREAMS} streams at 20 events/s, one process"
    rows = [
        Row(f"{figure}: lateness p99", p99 * 1e3, 50, 20, "{:.1f} ms", f" (added {added * 1e3:.1f})"),
        Row(f"{figure}: memory", peak, 150, 100, "{:.0f} MiB"),
    ]
    lines = [
        [name, *(f"{values[name, share] * 1e3:.1f}" for share in (0.5, 0.99, 1.0)), f"{len(late[name][0]):,}"]
        for name in late
    ]
    text = table(("lateness, ms", "p50", "p99", "worst", "events a round"), lines)
    return Section(
        "A thousand streams", rows, [text], {"late": {f"{a} {b}": v for (a, b), v in values.items()}}
    )


async def _streams(port: int, process: Process | None, seconds: float) -> tuple[list[float], float]:
    # Started over a while, so that their events fall at all times; counted once all are there.
    events = round((seconds + _RAMP_SECONDS) * 1000 / _PAUSE_MILLISECONDS)
    data = stream_request(events, _PAUSE_MILLISECONDS, words=" stamp")
    loop = asyncio.get_running_loop()
    late: list[float] = []
    _Reader.late, _Reader.since = late, time.monotonic_ns() + round(_RAMP_SECONDS * 1e9)
    gc.freeze()
    gc.disable()
    try:
        began = loop.time()
        clients: list[Client] = []
        for number in range(STREAMS):
            await asyncio.sleep(began + number * _RAMP_SECONDS / STREAMS - loop.time())
            clients.append((await loop.create_connection(lambda: _Reader(data, 1), "127.0.0.1", port))[1])
        await asyncio.sleep(seconds / 2)
        memory = process.resident_mib() if process is not None else 0.0
        await finish(clients)
        return late, max(memory, process.resident_mib() if process is not None else 0.0)
    finally:
        gc.enable()
        gc.unfreeze()
