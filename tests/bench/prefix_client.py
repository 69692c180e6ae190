"""The client of the prefix benchmark: sends each turn at its time, and takes the time to its first token."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import cast

from tests.bench.load import KEY
from tests.bench.prefix_load import Load, Turn


async def send(load: Load, port: int, warm_up: int, warm: Callable[[], None]) -> list[float]:
    """Send a load; the seconds to each first token, in the order in which answers ended.

    The first `warm_up` turns are sent and not counted; after the last of them `warm` is called.
    A turn waits for the answer to the one before it, and its time is taken from then. Raises an
    ExceptionGroup of RuntimeError when one is not answered.
    """
    loop = asyncio.get_running_loop()
    idle: list[_Connection] = []
    answered: dict[int, asyncio.Event] = {}
    times: list[float] = []

    async def one(data: bytes, waits: asyncio.Event | None, done: asyncio.Event, *, counts: bool) -> None:
        if waits is not None:
            await waits.wait()
        if idle:
            connection = idle.pop()
        else:
            _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
        took = await connection.ask(data)
        if counts:
            times.append(took)
        idle.append(connection)
        done.set()

    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number, turn in enumerate(load.turns):
            data = _request(load, turn)  # made before its time
            await asyncio.sleep(max(0.0, began + turn.at - loop.time()))
            if number == warm_up:
                warm()
            done = asyncio.Event()
            waits = answered.get(turn.conversation)
            group.create_task(one(data, waits, done, counts=number >= warm_up))
            answered[turn.conversation] = done
    for connection in idle:
        connection.transport.close()
    return times


class _Connection(asyncio.Protocol):
    # One request after the other.
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, data: bytes) -> asyncio.Future[float]:
        """The seconds to the first token, when the answer is complete."""
        self._done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._first: float | None = None
        self._tail = b""
        self._asked = time.perf_counter()
        self.transport.write(data)
        return self._done

    def data_received(self, data: bytes) -> None:
        data = self._tail + data
        if self._first is None:
            if not data.startswith(b"HTTP/1.1 200"):
                self._done.set_exception(RuntimeError(f"not answered: {data[:500]!r}"))
                return
            if b'"content":"' in data:
                self._first = time.perf_counter() - self._asked
        self._tail = data if self._first is None else data[-8:]
        if data.endswith(b"0\r\n\r\n") and self._first is not None and not self._done.done():
            self._done.set_result(self._first)

    def connection_lost(self, exc: Exception | None) -> None:
        if hasattr(self, "_done") and not self._done.done():
            self._done.set_exception(RuntimeError(f"the router closed the connection: {exc}"))


def body_of(load: Load, turn: Turn) -> bytes:
    """The JSON of a turn's request."""
    fields = {"model": "m", "max_tokens": load.shape.answer_tokens, "stream": True}
    return json.dumps({"messages": load.messages(turn), **fields}).encode()


def _request(load: Load, turn: Turn) -> bytes:
    body = body_of(load, turn)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body
