"""Dialling: the tasks that make new connections to engines."""

import asyncio
from collections.abc import Callable
from typing import cast

import anyio
from cortex_shared.logs import get_logger

from cortex_gateway.endpoint import Endpoint
from cortex_gateway.pool import Pool
from cortex_gateway.upstream import Connection

_log = get_logger("dialling")


class Dial:
    """A connection under way. `cancel` makes its result go to the pool instead of to who asked."""

    __slots__ = ("wanted",)

    def __init__(self) -> None:
        self.wanted = True

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.wanted = False


class Dialler:
    """Connects to engines while requests wait for it."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        """Connections that nobody waits for any more go to `pool`."""
        self._pool = pool
        self._loop = loop
        # asyncio's, since anyio's cannot be given a task from a transport's callback.
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Parent of the connecting tasks, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await anyio.sleep_forever()
            finally:
                self._group = None

    def dial(self, endpoint: Endpoint, seconds: float, done: Callable[[Connection | None], None]) -> Dial:
        """Connect anew, at most for `seconds`; `done` gets the connection, or None when there is none."""
        dial = Dial()
        if self._group is None:
            self._loop.call_soon(self._refused, done, dial)
        else:
            self._group.create_task(self._connect(endpoint, seconds, done, dial))
        return dial

    @staticmethod
    def _refused(done: Callable[[Connection | None], None], dial: Dial) -> None:
        if dial.wanted:
            done(None)

    async def _connect(
        self, endpoint: Endpoint, seconds: float, done: Callable[[Connection | None], None], dial: Dial
    ) -> None:
        connection: Connection | None = None
        made = Connection(endpoint, self._pool)
        with anyio.move_on_after(seconds):
            try:
                await self._loop.create_connection(
                    lambda: cast("asyncio.Protocol", made), endpoint.host, endpoint.port, ssl=endpoint.tls
                )
            except (OSError, ValueError):
                pass
            else:
                connection = made
        if dial.wanted:
            try:
                done(connection)
            except Exception as error:  # noqa: BLE001 (raised here, it would end all of the gateway)
                _log.error("dialling.bug", error=repr(error))
                if connection is not None:
                    connection.fail()
        elif connection is not None:
            self._pool.put(endpoint, connection)
