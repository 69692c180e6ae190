"""Database: the pool, one transaction at a time, and whether Postgres is there and prepared."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import asyncpg
from cortex_shared.errors import Unavailable
from cortex_shared.logs import get_logger
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

_log = get_logger("db")

type SessionFactory = async_sessionmaker[AsyncSession]

_POOL_SIZE = 5
_POOL_OVERFLOW_MAX = 5
_POOL_WAIT_SECONDS = 3.0
_CONNECT_SECONDS = 2.0
_COMMAND_SECONDS = 15.0
_LOOK_SECONDS = 5.0
_RETRY_SECONDS = (0.1, 1.0)
# https://www.postgresql.org/docs/current/errcodes-appendix.html: a table or column is missing, the
# connection failed, two transactions stood in each other's way, the server is going down, has no room, or a
# lock or a statement took too long.
_MISSING = frozenset({"42P01", "42703", "3D000", "3F000"})
_NOT_NOW = ("08", "40", "53", "55P03", "57")


def create_engine(url: str) -> AsyncEngine:
    """A small pool on a `postgresql+asyncpg://` address, with bounded waits everywhere."""
    return create_async_engine(
        url,
        pool_size=_POOL_SIZE,
        max_overflow=_POOL_OVERFLOW_MAX,
        pool_timeout=_POOL_WAIT_SECONDS,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "timeout": _CONNECT_SECONDS,
            "command_timeout": _COMMAND_SECONDS,
            # Cached plans break after a migration by another replica, a restored database and behind poolers.
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "server_settings": {
                "application_name": "cortex-api",
                "timezone": "UTC",
                "lock_timeout": "5000",
                "idle_in_transaction_session_timeout": "60000",
            },
        },
    )


def create_sessions(engine: AsyncEngine) -> SessionFactory:
    """Sessions whose rows stay readable after the commit."""
    return async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)


class Database:
    """Postgres as the API uses it. `run` must be among the process's tasks."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        self.sessions: SessionFactory = create_sessions(self.engine)
        self._problem: str | None = "not reached yet"
        self._ready = anyio.Event()
        self._look_now = anyio.Event()

    @property
    def problem(self) -> str | None:
        """Why it cannot be used now; None when all is well."""
        return self._problem

    async def wait_ready(self) -> None:
        """Wait until it is reachable and its tables are there."""
        await self._ready.wait()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession]:
        """One transaction: committed at the end of the body, rolled back if the body raises.

        Raises Unavailable when Postgres is away or not prepared, and what the body raises.
        """
        if self._problem is not None:
            raise self._unavailable(self._problem)
        with self._translated():
            async with self.sessions() as session, session.begin():
                yield session

    async def run(self, prepare: Callable[[AsyncEngine], Awaitable[None]]) -> None:
        """Keep looking at Postgres until cancelled; `prepare` it (migrate) whenever it is (back) there."""
        wait, last = _RETRY_SECONDS
        while True:
            try:
                with self._translated():
                    if self._problem is not None:
                        await prepare(self.engine)
                        self._set_problem(None)
                        _log.info("postgres.ready")
                    else:
                        async with self.engine.connect() as connection:
                            await connection.execute(text("SELECT 1"))
                wait = _RETRY_SECONDS[0]
            except Unavailable as error:
                if self._problem is None or self._problem == "not reached yet":
                    _log.warning("postgres.unreachable", error=error.message)
                self._set_problem(error.message)
                wait = min(last, wait * 1.6)
            with anyio.move_on_after(wait if self._problem else _LOOK_SECONDS):
                await self._look_now.wait()
            self._look_now = anyio.Event()

    async def close(self) -> None:
        """Close the pool."""
        await self.engine.dispose()

    def _set_problem(self, problem: str | None) -> None:
        self._problem = problem
        if problem is None:
            self._ready.set()
        elif self._ready.is_set():
            self._ready = anyio.Event()

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except (DBAPIError, asyncpg.PostgresError) as error:
            state = _sqlstate(error)
            if state in _MISSING:
                # Postgres came back empty: prepare it again at once.
                self._set_problem("its tables are missing; they are being made")
                self._look_now.set()
                raise self._unavailable("its tables are missing") from error
            if _is_not_now(error, state):
                self._look_now.set()
                raise self._unavailable(_first_line(error)) from error
            raise
        except (OSError, TimeoutError, PoolTimeoutError, asyncpg.InterfaceError) as error:
            self._look_now.set()
            raise self._unavailable(_first_line(error)) from error

    @staticmethod
    def _unavailable(problem: str) -> Unavailable:
        return Unavailable(
            f"Postgres is not available: {problem}",
            code="postgres.unavailable",
            remedy="see that Postgres runs at CORTEX_DATABASE__URL; Cortex tries again by itself",
        )


def _sqlstate(error: BaseException) -> str:
    at: Any = error
    while at is not None:
        state = getattr(at, "sqlstate", None)
        if state:
            return str(state)
        at = getattr(at, "orig", None) or at.__cause__
    return ""


def _is_not_now(error: Exception, state: str) -> bool:
    if state:
        return state.startswith(_NOT_NOW) or state == "28P01"
    if isinstance(error, ProgrammingError):
        return False
    return isinstance(error, (OperationalError, InterfaceError)) or getattr(
        error, "connection_invalidated", False
    )


def _first_line(error: BaseException) -> str:
    text_ = str(getattr(error, "orig", None) or error).strip()
    return (text_ or type(error).__name__).splitlines()[0][:200]
