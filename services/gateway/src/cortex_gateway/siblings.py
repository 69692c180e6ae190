"""Siblings: the gateway processes of one start, each of which answers /metrics for all.

Who is asked for metrics rings the others; each puts its snapshot on its shelf and rings back. One that does
not (it is being started anew, or is stuck) counts with what it put down last. Counts of a process that died
are kept by its successor, since Prometheus would take their absence for a reset of the host's sum.
"""

import asyncio
import mmap
import os
from collections.abc import Callable
from contextlib import suppress

import anyio
from cortex_shared.errors import InvalidInput
from cortex_shared.logs import get_logger

from cortex_gateway.affinity import memory_bytes
from cortex_gateway.families import Snapshot, decode, encode, lasting, merge, render
from cortex_gateway.shelf import SHELF_MAX_BYTES, Shelf

_log = get_logger("siblings")

# A process whose loop is later than this has other problems than its metrics.
_ANSWER_SECONDS = 0.5


class Places:
    """What all processes of a host share: for their metrics, and the memory of which engine has had what.

    To be made before they are forked.
    """

    def __init__(self, count: int, affinity_max_bytes: int = mmap.PAGESIZE) -> None:
        """For `count` processes. Raises OSError."""
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        # Address space, not memory: pages take room when they are first written.
        self.affinity = mmap.mmap(-1, memory_bytes(affinity_max_bytes))
        self.shelves = [Shelf() for _ in range(count)]
        self.asked = [os.eventfd(0, flags) for _ in range(count)]
        self.told = [os.eventfd(0, flags) for _ in range(count)]


class Siblings:
    """One process among those that share `places`."""

    def __init__(self, places: Places, place: int, snapshot: Callable[[], Snapshot]) -> None:
        """`snapshot` gives this process's own counts. Needs a running loop when it is used."""
        self._places = places
        self._place = place
        self._snapshot = snapshot
        self._lock = anyio.Lock()
        left = places.shelves[place].get()
        self._before = lasting(_decoded(left)) if left is not None else []

    async def answer(self) -> None:
        """Answer the others until cancelled, and leave the last counts behind."""
        loop = asyncio.get_running_loop()
        asked = self._places.asked[self._place]
        self._put()  # what the one before had open is over
        loop.add_reader(asked, self._answer)
        try:
            await anyio.sleep_forever()
        finally:
            loop.remove_reader(asked)
            self._put()

    async def exposition(self) -> bytes:
        """The metrics of all processes, as Prometheus reads them."""
        async with self._lock:
            await self._ask()
        self._put()  # should this process die next, nobody tells less than it has told
        mine = merge([self._snapshot(), self._before])
        others = [shelf for place, shelf in enumerate(self._places.shelves) if place != self._place]
        found = [data for shelf in others if (data := shelf.get()) is not None]
        return render(merge([mine, *map(_decoded, found)]))

    async def _ask(self) -> None:
        others = [place for place in range(len(self._places.shelves)) if place != self._place]
        before = {place: self._places.shelves[place].generation for place in others}
        told, loop, rung = self._places.told[self._place], asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(told, rung.set)
        try:
            for place in others:
                _ring(self._places.asked[place])
            with anyio.move_on_after(_ANSWER_SECONDS):
                while any(self._places.shelves[place].generation == before[place] for place in others):
                    await rung.wait()
                    _hear(told)
                    rung.clear()
        finally:
            loop.remove_reader(told)

    def _answer(self) -> None:
        _hear(self._places.asked[self._place])
        self._put()
        for told in self._places.told:
            _ring(told)

    def _put(self) -> None:
        if not self._places.shelves[self._place].put(encode(merge([self._snapshot(), self._before]))):
            _log.error("metrics.too_many", remedy=f"fewer routes: {SHELF_MAX_BYTES // 2} bytes is the most")


def _ring(eventfd: int) -> None:
    with suppress(BlockingIOError):  # full: it has been rung for long
        os.eventfd_write(eventfd, 1)


def _hear(eventfd: int) -> None:
    with suppress(BlockingIOError):  # heard already
        os.eventfd_read(eventfd)


def _decoded(data: bytes) -> Snapshot:
    try:
        return decode(data)
    except InvalidInput as error:
        _log.error("metrics.unreadable", error=error.message)
        return []
