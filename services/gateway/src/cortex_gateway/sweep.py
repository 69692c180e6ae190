"""Sweeper: looks at everything that has a time limit, four times a second, and only while there is anything.

One timer for all instead of one per request: time limits may be a quarter of a second late, and cost
the hot path nothing.
"""

import asyncio
from typing import Final, Protocol

from cortex_shared.logs import get_logger

_log = get_logger("sweep")

SWEEP_SECONDS: Final = 0.25


class Timed(Protocol):
    """Something with time limits."""

    def tick(self, now: float) -> None:
        """Look at the limits; `now` is the loop's time in seconds."""
        ...


_LAG_WINDOW_SECONDS: Final = 30.0


class Sweeper:
    """Calls `tick` of everything that was added and not removed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timed: set[Timed] = set()
        # Requests: who adds one calls `wake` while `asleep` is true.
        self.requests: set[Timed] = set()
        self.asleep = True
        self._due = 0.0
        # The worst lag of this window and of the one before it.
        self._lag = self._lag_before = 0.0
        self._window_ends = 0.0

    def add(self, timed: Timed) -> None:
        """Begin to look at it."""
        self._timed.add(timed)
        if self.asleep:
            self.wake()

    def wake(self) -> None:
        """There is something to look at."""
        self.asleep = False
        self._due = self._loop.time() + SWEEP_SECONDS
        self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def remove(self, timed: Timed) -> None:
        """Look at it no longer; fine if it is not there."""
        self._timed.discard(timed)

    def lag_max(self) -> float:
        """How late the loop came to this at worst, in the last 30 to 60 seconds; 0 while it does nothing."""
        late = self._loop.time() - self._window_ends
        if late >= _LAG_WINDOW_SECONDS:
            return 0.0
        return self._lag if late >= 0 else max(self._lag, self._lag_before)

    def _note_lag(self, now: float) -> None:
        late = now - self._window_ends
        if late >= 0:
            self._lag_before = self._lag if late < _LAG_WINDOW_SECONDS else 0.0
            self._lag = 0.0
            self._window_ends = now + _LAG_WINDOW_SECONDS
        self._lag = max(self._lag, now - self._due)

    def _sweep(self) -> None:
        if self._timed or self.requests:
            self._loop.call_later(SWEEP_SECONDS, self._sweep)
        else:
            self.asleep = True
        now = self._loop.time()
        self._note_lag(now)
        self._due = now + SWEEP_SECONDS
        for some in (self._timed, self.requests):
            for timed in list(some):
                if timed not in some:
                    continue  # it ended with one before it
                try:
                    timed.tick(now)
                except Exception as error:  # noqa: BLE001 (a bug with one must not keep others from their limits)
                    _log.error("sweep.bug", error=repr(error))
