"""Pool: idle connections to engines."""

import asyncio
from typing import Final

from cortex_gateway.endpoint import Endpoint
from cortex_gateway.heads import KnownHeads
from cortex_gateway.quick import QuickReading
from cortex_gateway.settings import UpstreamSettings
from cortex_gateway.sweep import Sweeper
from cortex_gateway.upstream import Connection, Headers

_HEADS_MAX: Final = 256


class Pool:
    """Idle connections per endpoint: last in, first out."""

    def __init__(self, settings: UpstreamSettings, loop: asyncio.AbstractEventLoop, sweeper: Sweeper) -> None:
        self.settings = settings
        self._idle_seconds: float = settings.idle_seconds
        self._idle_max: int = settings.idle_max
        self.heads: KnownHeads[tuple[int, Headers, bool]] = KnownHeads(_HEADS_MAX)
        self.ended = 0.0  # when the last byte of an answer was last read, by perf_counter
        self._loop = loop
        self._sweeper = sweeper
        self._endpoints: set[Endpoint] = set()
        self._resting: list[QuickReading] = []

    def take(self, endpoint: Endpoint) -> Connection | None:
        """An idle connection, or None."""
        if not endpoint.idle:
            return None
        connection = endpoint.take_idle(self._loop.time() - self._idle_seconds)
        if connection is not None:
            connection.reused = True
        return connection

    def put(self, endpoint: Endpoint, connection: Connection) -> None:
        """Keep a connection for the next request."""
        if endpoint.removed or connection.closed or len(endpoint.idle) >= self._idle_max:
            connection.close()
            return
        connection.idle_since = self._loop.time()
        endpoint.idle.append(connection)
        if endpoint not in self._endpoints:
            self._endpoints.add(endpoint)
            self._sweeper.add(self)

    def rest(self, reading: QuickReading) -> None:
        """Wake it in a moment: one timer for all."""
        if not self._resting:
            self._loop.call_later(self.settings.gather_seconds, self._wake)
        self._resting.append(reading)

    def _wake(self) -> None:
        resting, self._resting = self._resting, []
        for reading in resting:
            reading.wake()

    def forget(self, endpoint: Endpoint) -> None:
        """The endpoint left the routes: its idle connections are closed, and no more are kept."""
        endpoint.removed = True
        endpoint.close_idle(float("inf"))

    def tick(self, now: float) -> None:
        """Close what has been idle for too long."""
        before = now - self._idle_seconds
        for endpoint in list(self._endpoints):
            endpoint.close_idle(before)
            if not endpoint.idle:
                self._endpoints.discard(endpoint)
        if not self._endpoints:
            self._sweeper.remove(self)
