"""Sweeper: looks at everything that has a time limit, four times a second, and only while there is anything.

One timer for all instead of one per request: time limits may be a quarter of a second late, and cost
the hot path nothing.
"""

import asyncio
from typing import Protocol

from cortex_shared.logs import get_logger

_log = get_logger("sweep")

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
            if timed not in self._timed:
                continue  # it ended with one before it
            try:
                timed.tick(now)
            except Exception as error:  # noqa: BLE001 (a bug with one must not keep the others from their limits)
                _log.error("sweep.bug", error=repr(error))
