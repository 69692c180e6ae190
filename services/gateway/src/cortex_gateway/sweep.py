"""Sweeper: looks at everything that has a time limit, four times a second, and only while there is anything.

One timer for all instead of one per request: time limits may be a quarter of a second late, and cost
the hot path nothing.
"""

import asyncio
from typing import Protocol

SWEEP_SECONDS = 0.25


class Timed(Protocol):
    """Something with time limits."""

    def tick(self, now: float) -> None:
        """Look at the limits; `now` is the loop's time in seconds."""
        ...


class Sweeper:
    """Calls `tick` of everything that was added and not removed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timed: set[Timed] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, timed: Timed) -> None:
        """Begin to look at it."""
        self._timed.add(timed)
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def remove(self, timed: Timed) -> None:
        """Look at it no longer; fine if it is not there."""
        self._timed.discard(timed)

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep) if self._timed else None
        now = self._loop.time()
        for timed in list(self._timed):
            timed.tick(now)
