"""Leadership: one API process at a time controls, by an advisory lock on a connection of its own."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import cast

import anyio
import asyncpg
from cortex_shared.logs import get_logger

_log = get_logger("controllers.leader")

# Any constant that no other user of the database takes; see also db.migrate and models.repository.
LOCK = 7_226_071_003
_TRY_SECONDS = 1.0
_CHECK_SECONDS = 5.0
_ANSWER_SECONDS = 3.0
_NOT_NOW = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class Leadership:
    """`run` must be among the process's tasks."""

    def __init__(self, database_url: str) -> None:
        """`database_url` as SQLAlchemy takes it."""
        self._dsn = database_url.replace("postgresql+asyncpg://", "postgresql://", 1)

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Run `lead` whenever this process is elected; it is cancelled when the lock may be lost."""
        told = False
        while True:
            try:
                connection = await self._connect()
            except _NOT_NOW as error:
                if not told:
                    _log.warning("leader.unreachable", error=str(error) or repr(error))
                    told = True
                await anyio.sleep(_TRY_SECONDS)
                continue
            told = False
            try:
                await self._wait_elected(connection)
                _log.info("leader.elected")
                await self._hold(connection, lead)
            except _NOT_NOW as error:
                _log.warning("leader.connection_lost", error=str(error) or repr(error))
            finally:
                with anyio.move_on_after(2, shield=True), suppress(*_NOT_NOW):
                    await connection.close(timeout=1)
            await anyio.sleep(0.1)

    async def _connect(self) -> asyncpg.Connection:
        return cast(
            "asyncpg.Connection",
            await asyncpg.connect(
                self._dsn,
                timeout=2,
                command_timeout=_ANSWER_SECONDS,
                statement_cache_size=0,
                server_settings={
                    "application_name": "cortex-api-leader",
                    # A host that vanishes without a word loses the lock after 5 + 3 x 2 seconds.
                    "tcp_keepalives_idle": "5",
                    "tcp_keepalives_interval": "2",
                    "tcp_keepalives_count": "3",
                },
            ),
        )

    @staticmethod
    async def _wait_elected(connection: asyncpg.Connection) -> None:
        # Trying beats waiting in pg_advisory_lock: a waiting statement keeps vacuum from its work.
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):  # noqa: ASYNC110 # polls
            await anyio.sleep(_TRY_SECONDS)

    @staticmethod
    async def _hold(connection: asyncpg.Connection, lead: Callable[[], Awaitable[None]]) -> None:
        lost = anyio.Event()

        def terminated(_connection: object) -> None:
            lost.set()

        connection.add_termination_listener(terminated)
        async with anyio.create_task_group() as group:

            async def check() -> None:
                while not lost.is_set():
                    with anyio.move_on_after(_CHECK_SECONDS):
                        await lost.wait()
                    if not lost.is_set():
                        try:
                            await connection.fetchval("SELECT 1")
                        except _NOT_NOW:
                            lost.set()
                _log.warning("leader.deposed")
                group.cancel_scope.cancel()

            group.start_soon(check)
            await lead()
