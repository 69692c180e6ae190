"""Lately: batches that the bus has taken a moment ago, for a bus that comes back without them."""

from collections import deque


class Lately:
    """Batches of the last `seconds`, of `max_bytes` together at most: the oldest go first."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._batches: deque[tuple[float, str, bytes]] = deque()
        self._bytes = 0

    def keep(self, now: float, name: str, data: bytes) -> None:
        """The bus has taken it."""
        self._batches.append((now, name, data))
        self._bytes += len(data)
        self._drop(now)

    def batches(self, now: float) -> list[tuple[str, bytes]]:
        """All of them, oldest first: name and data."""
        self._drop(now)
        return [(name, data) for _, name, data in self._batches]

    def _drop(self, now: float) -> None:
        batches = self._batches
        while batches and (batches[0][0] < now - self._seconds or self._bytes > self._max_bytes):
            self._bytes -= len(batches.popleft()[2])
