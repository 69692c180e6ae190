"""Loads on one address, for the CPU of what stands there to be measured: requests, streams, a steady rate.

Every answer is read by an HTTP parser and must have status 200, else the load fails.
"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import cast

import httptools

KEY = "sk-cortex-bench"
CONNECTIONS = 16
_STEADY_CONNECTIONS = 64
WAIT_SECONDS = 120.0


class LoadFailed(Exception):
    """An answer was not what it should be, or did not come."""


def request(size: int, *, start: str = "", **fields: object) -> bytes:
    """A chat completion, with its head: a body of about `size` bytes, a prompt that begins with `start`."""
    prompt = start + "x" * max(0, size - 80 - len(start))
    body = {"messages": [{"role": "user", "content": prompt}], "model": "m", **fields}
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\naccept: application/json\r\n"
        f"authorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def stream_request(events: int, pause_milliseconds: int = 0, burst: int = 1, words: str = "") -> bytes:
    """A request for a stream that the mock engine understands."""
    return request(300, start=f"@{events} {pause_milliseconds} {burst}{words}@", stream=True)


class Client(asyncio.Protocol):
    """Sends the same request again and again on one connection, `count` times; `times` are its answers'."""

    def __init__(self, data: bytes, count: int) -> None:
        self._data = data
        self._left = count
        self.times: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._left:
            self.send()

    def send(self) -> None:
        """Send it once more."""
        self._began = time.perf_counter()
        self._transport.write(self._data)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.times.append(time.perf_counter() - self._began)
        status = self._parser.get_status_code()
        self._parser = httptools.HttpResponseParser(self)
        if status != 200:
            self._fail(f"status {status}")
            return
        self._left -= 1
        self.answered()
        if self._left > 0:
            self.send()
        elif not self.done.done():
            self.done.set_result(None)

    def answered(self) -> None:
        """An answer is complete."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection ended: {exc}")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(LoadFailed(why))

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


async def connect[C: Client](port: int, make: Callable[[], C], count: int) -> list[C]:
    """`count` connections."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(make, "127.0.0.1", port))[1] for _ in range(count)]


async def finish(clients: list[Client]) -> list[float]:
    """Wait for all, close them; their times. Raises LoadFailed, TimeoutError."""
    times: list[float] = []
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            for client in clients:
                await client.done
                times += client.times
    finally:
        for client in clients:
            if client.done.done() and not client.done.cancelled():
                client.done.exception()
            client.close()
    return times


async def ask(port: int, data: bytes, count: int, *, connections: int = CONNECTIONS) -> float:
    """`count` requests over all connections, each asked when the one before is answered; their rate."""
    began = time.perf_counter()
    clients = await connect(port, lambda: Client(data, count // connections), connections)
    await finish(clients)
    return count / (time.perf_counter() - began)


async def steady(
    port: int, rate: float, seconds: float, *, connections: int = _STEADY_CONNECTIONS
) -> list[float]:
    """Requests at a steady rate, whether answered or not (open loop); the seconds each took, from its write.

    A request goes out on the next connection that is free; LoadFailed when all are taken: too slow for this.
    """
    data, loop = request(300), asyncio.get_running_loop()
    free: list[Client] = []

    class Slot(Client):
        def answered(self) -> None:
            free.append(self)

    slots = await connect(port, lambda: Slot(data, 0), connections)
    free += slots
    due, count = loop.time(), round(rate * seconds)
    try:
        for _ in range(count):
            due += 1 / rate
            await asyncio.sleep(due - loop.time())
            if not free:
                raise LoadFailed(f"{rate:.0f} requests/s are too many")
            free.pop(0).send()
        async with asyncio.timeout(WAIT_SECONDS):
            while len(free) < connections:
                await asyncio.sleep(0.01)
    finally:
        for slot in slots:
            slot.close()
    return [taken for slot in slots for taken in slot.times]


async def check(port: int) -> None:
    """Whether an answer and a stream come through whole. Raises LoadFailed."""
    whole = await _exchange(port, request(300))
    if b'"total_tokens":14' not in whole.replace(b" ", b""):
        raise LoadFailed(f"an answer without its usage: {whole[:500]!r}")
    events = await _exchange(port, stream_request(20))
    if events.count(b" token") != 20 or events.count(b"[DONE]") != 1:
        raise LoadFailed(f"a stream that is not whole: {events[:500]!r} ... {events[-500:]!r}")


async def _exchange(port: int, data: bytes) -> bytes:
    body: list[bytes] = []

    class Reader(Client):
        def on_body(self, data: bytes) -> None:
            body.append(data)

    await finish(list[Client](await connect(port, lambda: Reader(data, 1), 1)))
    return b"".join(body)
