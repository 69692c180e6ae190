"""What gateways say of themselves in a soak, and the memory that they hold."""

import asyncio
import re
import statistics
import urllib.request
from dataclasses import dataclass, field

from tests.bench.processes import Process

_SAMPLE = re.compile(r"^(cortex_gateway_[a-z_]+)(?:\{[^}]*\})? ([0-9.e+-]+)$", re.MULTILINE)
_SECONDS = 10.0
# Must all be 0 when nothing is under way.
AT_REST = (
    "cortex_gateway_in_flight_requests",
    "cortex_gateway_waiting_requests",
    "cortex_gateway_endpoint_outstanding_requests",
    "cortex_gateway_journal_bytes",
    "cortex_gateway_usage_uncounted_bytes",
)
NEVER = ("cortex_gateway_usage_lost_records_total",)


async def metrics(port: int) -> dict[str, float]:
    """Each of a gateway's own metrics, summed over its labels."""
    page = await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/metrics")
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(page):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


async def open_connections(port: int) -> int:
    """Of a mock engine, without the one that asks."""
    page = await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/mock/state")
    found = re.search(r'"connections": (\d+)', page)
    assert found is not None
    return int(found[1]) - 1


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
        return answer.read().decode()


@dataclass(slots=True)
class Memory:
    """Resident memory of gateways over time, in MiB."""

    processes: list[Process]
    samples: list[tuple[float, list[float]]] = field(default_factory=list[tuple[float, list[float]]])

    def look(self, minutes: float) -> list[float]:
        """Now; `minutes` since the beginning."""
        now = [process.resident_mib() for process in self.processes]
        self.samples.append((minutes, now))
        return now

    def growth(self, first: tuple[float, float], last: tuple[float, float]) -> list[tuple[float, float]]:
        """Of each: the medians within two spans of minutes."""
        return [
            (self._median(number, *first), self._median(number, *last))
            for number in range(len(self.processes))
        ]

    def _median(self, number: int, start: float, end: float) -> float:
        return statistics.median(now[number] for minutes, now in self.samples if start <= minutes <= end)


async def is_ready(port: int) -> bool:
    """Whether a gateway has keys and routes."""
    try:
        page = await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/readyz")
    except OSError:
        return False
    return '"ok"' in page


async def statuses_at_once(port: int, key: str, count: int) -> list[int]:
    """Statuses of so many requests that are all under way at the same time."""
    body = b'{"model":"m","messages":[{"role":"user","content":"@1 500 1@"}]}'
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    lines = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for _, writer in lines:
        writer.write(head.encode() + body)
    statuses: list[int] = []
    async with asyncio.timeout(_SECONDS):
        for reader, writer in lines:
            statuses.append(int((await reader.readuntil(b"\r\n\r\n"))[9:12]))
            writer.close()
    return statuses
