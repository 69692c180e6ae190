"""Bell: rung by others or by the clock, for a loop that ticks where requests wait.

A cancel scope around an event's wait does the same, and takes several times as long at each tick.
"""

import asyncio


class Bell:
    """One loop waits for it. Rung while nobody waits, it wakes the next wait at once."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[bool] | None = None

    def ring(self) -> None:
        """Wake who waits. From the loop's thread."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._rung = True
        else:
            waiter.set_result(True)

    async def wait(self, seconds: float | None = None) -> bool:
        """Until it is rung, or so many seconds are over, if any are given; whether it was rung."""
        if self._rung:
            self._rung = False
            return True
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self._over, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # Rung in the same moment: for the next who waits.
            self._rung = self._rung or (waiter.done() and not waiter.cancelled() and waiter.result())
            raise
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    @staticmethod
    def _over(waiter: asyncio.Future[bool]) -> None:
        if not waiter.done():
            waiter.set_result(False)
