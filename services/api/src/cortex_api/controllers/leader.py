"""Leadership: one API process at a time controls, by an advisory lock on a connection of its own."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import cast

import anyio
import asyncpg
from cortex_shared.errors import Unavailable
from cortex_shared.logs import get_logger
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

_log = get_logger("controllers.leader")

# Any constant that no other user of the database takes; see also db.migrate and models.repository.
LOCK = 7_226_071_003
_TRY_SECONDS = 1.0
_CHECK_SECONDS = 5.0
_ANSWER_SECONDS = 3.0
# Whether the process of this backend holds the lock: pg_locks shows its two halves.
_HOLDS = text(
    "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = :pid"
    " AND classid = :high AND objid = :low AND objsubid = 1)"
)
_NOT_NOW = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


type Fence = Callable[[AsyncSession], Awaitable[None]]


class Leadership:
    """`run` must be among the process's tasks."""

    def __init__(self, database_url: str) -> None:
        """`database_url` as SQLAlchemy takes it."""
        self._dsn = database_url.replace("postgresql+asyncpg://", "postgresql://", 1)
        self._lost = anyio.Event()
        self._pid = 0

    async def check(self, session: AsyncSession) -> None:
        """Raise Unavailable, and end the election, unless this process still holds the lock.

        In the transaction that decides or counts up: a process that was frozen for a while, and was deposed
        meanwhile, must not act on what it knew before it has noticed.
        """
        found = await (await session.connection()).execute(
            _HOLDS, {"pid": self._pid, "high": LOCK >> 32, "low": LOCK & 0xFFFF_FFFF}
        )
        if not found.scalar_one():
            self._lost.set()
            raise Unavailable("another process is elected", code="leader.deposed")

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

    async def _hold(self, connection: asyncpg.Connection, lead: Callable[[], Awaitable[None]]) -> None:
        lost = self._lost = anyio.Event()
        self._pid = connection.get_server_pid()

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
