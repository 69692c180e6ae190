"""What the gateway costs: CPU per request and per SSE event, against an engine that answers at once.

`python -m tests.bench.gateway`: about half a minute. Each figure is the least of its rounds; the gateway
runs as its own process in its full form (keys, metering with journal, metrics; neither Redis nor NATS there).
"""

import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import cast

import uvloop
from cortex_gateway.snapshot import Snapshots
from cortex_shared.contracts.keys import KeyRecord, hash_key
from cortex_shared.contracts.routes import Endpoint, Route, RoutingTable

_KEY = "sk-cortex-bench"
_CONNECTIONS = 16
_STREAMS = 64
_EVENTS = 100


def main() -> None:
    """Run everything and print one table."""
    uvloop.run(_run())


async def _run() -> None:
    print(f"{_cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("uvloop", "httptools", "uvicorn", "msgspec")))
    with tempfile.TemporaryDirectory() as folder:
        engine_port, gateway_port = _free_port(), _free_port()
        engine = subprocess.Popen([sys.executable, "-m", "tests.bench.engine", str(engine_port)])
        _write_snapshot(Path(folder), engine_port)
        environment = os.environ | {
            "CORTEX_SNAPSHOT_DIR": folder,
            "CORTEX_METER__JOURNAL_DIR": f"{folder}/journal",
            "CORTEX_HTTP__PORT": str(gateway_port),
            "CORTEX_HTTP__DRAIN_SECONDS": "1",
            "CORTEX_REDIS__URL": "redis://127.0.0.1:1/0",
            "CORTEX_NATS__URL": "nats://127.0.0.1:1",
            "CORTEX_ENGINE_SECRET": "bench",
            "CORTEX_LOG__LEVEL": "error",
        }
        gateway = subprocess.Popen([sys.executable, "-m", "cortex_gateway"], env=environment)
        try:
            await _up(engine_port)
            await _up(gateway_port)
            await _measure(engine_port, gateway_port, gateway.pid)
        finally:
            for process in (gateway, engine):
                process.send_signal(signal.SIGTERM)
                process.wait(10)


async def _measure(engine: int, gateway: int, pid: int) -> None:
    await _requests(gateway, 300, 500)
    print(f"{'':28}{'direct/s':>10}{'through/s':>11}{'gateway CPU':>16}")
    for name, size in (("request, 300 B", 300), ("request, 32 KB", 32_000), ("request, 256 KB", 256_000)):
        count = 4000 if size < 100_000 else 800
        direct = await _requests(engine, size, count)
        best, rate = 1e9, 0.0
        for _ in range(3):
            before = _cpu_seconds(pid)
            rate = max(rate, await _requests(gateway, size, count))
            best = min(best, (_cpu_seconds(pid) - before) / count * 1e6)
        print(f"{name:28}{direct:10.0f}{rate:11.0f}{best:9.1f} us/req")
    for name, pause, streams in (("event, paced 50/s", 20, 100), ("event, flat out", 0, 20)):
        count = streams * (_EVENTS if pause else 2000)
        direct = await _streams(engine, pause, streams, count // streams)
        best, rate = 1e9, 0.0
        for _ in range(2):
            before = _cpu_seconds(pid)
            rate = max(rate, await _streams(gateway, pause, streams, count // streams))
            best = min(best, (_cpu_seconds(pid) - before) / count * 1e6)
        print(f"{name:28}{direct:10.0f}{rate:11.0f}{best:9.1f} us/event")
    await asyncio.sleep(1)
    before = _cpu_seconds(pid)
    await asyncio.sleep(5)
    idle = (_cpu_seconds(pid) - before) / 5
    print(f"idle: {idle:.2%} of one core; {_memory_mib(pid, 'Rss:')} MiB resident, ", end="")
    print(f"{_memory_mib(pid, 'Pss:')} MiB proportional")
    await _latency("direct", engine)
    await _latency("through", gateway)


class _Client(asyncio.Protocol):
    # Sends one request after the other on one connection, and counts the ends of answers.
    def __init__(self, data: bytes, count: int, end: bytes) -> None:
        self._data = data
        self._left = count
        self._end = end
        self._tail = b""
        self._times: list[float] = []
        self.done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._data)

    def data_received(self, data: bytes) -> None:
        self._tail = self._tail[-64:] + data
        if not self._tail.endswith(self._end):
            return
        self._times.append(time.perf_counter() - self._began)
        self._tail = b""
        self._left -= 1
        if self._left:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(self._times)


async def _ask(port: int, data: bytes, connections: int, each: int, end: bytes) -> list[float]:
    loop = asyncio.get_running_loop()
    clients: list[_Client] = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: _Client(data, each, end), "127.0.0.1", port)
        clients.append(client)
    times: list[float] = []
    for client in clients:
        times += await asyncio.wait_for(client.done, 60)
    return times


async def _requests(port: int, size: int, count: int) -> float:
    began = time.perf_counter()
    await _ask(port, _request(size), _CONNECTIONS, count // _CONNECTIONS, b'"total_tokens":14}}')
    return count / (time.perf_counter() - began)


async def _streams(port: int, pause_milliseconds: int, streams: int, events: int) -> float:
    began = time.perf_counter()
    data = _request(300, stream=True, user=f"{pause_milliseconds} {events}")
    await _ask(port, data, streams, 1, b"0\r\n\r\n")
    return streams * events / (time.perf_counter() - began)


async def _latency(name: str, port: int) -> None:
    times = sorted(await _ask(port, _request(300), 1, 1000, b'"total_tokens":14}}'))
    print(f"one after the other, {name}: p50 {times[500] * 1e3:.3f} ms, p99 {times[990] * 1e3:.3f} ms")


def _request(size: int, **fields: object) -> bytes:
    body = {"messages": [{"role": "user", "content": "x" * max(0, size - 80)}], "model": "m", **fields}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {_KEY}\r\n"
    head += (
        f"accept: application/json\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def _write_snapshot(folder: Path, engine_port: int) -> None:
    endpoint = Endpoint(instance="bench", url=f"http://127.0.0.1:{engine_port}")
    route = Route(name="m", model_id=1, task="chat", engine="vllm", created=1, endpoints=[endpoint])
    snapshots = Snapshots(folder)
    snapshots.save_table(RoutingTable(term=1, version=1, written_at=datetime.now(UTC), routes=[route]))
    snapshots.save_keys([KeyRecord(id=1, name="bench", hash=hash_key(_KEY))])


async def _up(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _cpu_seconds(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _memory_mib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) // 1024
    return 0


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()


if __name__ == "__main__":
    main()
