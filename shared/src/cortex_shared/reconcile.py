"""Loop: looks at keys when hinted; one look per key at a time, bounded workers, back-off on Unavailable."""

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from cortex_shared.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Again:
    """Look at this key once more after a while, though nothing failed."""

    after_seconds: float


class Loop[K: Hashable]:
    """Level-triggered: a hint says look at this key, never what changed.

    Two looks at one key never overlap; however many hints arrive during a look, one more look follows.
    Unavailable backs off, doubling between the two bounds, and a hint cuts the wait. Any other exception
    is a bug and ends `run`.
    """

    def __init__(
        self,
        look: Callable[[K], Awaitable[Again | None]],
        *,
        workers_max: int,
        backoff_seconds: tuple[float, float] = (0.2, 10),
    ) -> None:
        self._look = look
        self._workers_max = workers_max
        self._backoff_seconds = backoff_seconds
        self._hints: dict[K, anyio.Event] = {}
        self._early: set[K] = set()
        self._group: TaskGroup | None = None
        self._limit: anyio.CapacityLimiter | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        self._limit = anyio.CapacityLimiter(self._workers_max)
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                for key in self._early:
                    self.hint(key)
                self._early.clear()
                await anyio.sleep_forever()
            finally:
                self._group = None

    def hint(self, key: K) -> None:
        """Ask for a look at `key`. Hints given before `run` are kept."""
        if self._group is None:
            self._early.add(key)
        elif key in self._hints:
            self._hints[key].set()
        else:
            self._hints[key] = anyio.Event()
            self._group.start_soon(self._work, key)

    async def _work(self, key: K) -> None:
        assert self._limit is not None
        failures = 0
        while True:
            hinted = self._hints[key] = anyio.Event()
            async with self._limit:
                try:
                    again = await self._look(key)
                    failures = 0
                except Unavailable:
                    first, last = self._backoff_seconds
                    again = Again(min(last, first * 2 ** min(failures, 16)))
                    failures += 1
            if hinted.is_set():
                continue
            if again is None:
                del self._hints[key]
                return
            with anyio.move_on_after(again.after_seconds):
                await hinted.wait()
