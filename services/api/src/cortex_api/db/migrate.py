"""Bring the database to this release's revision, once, however many replicas start at the same time."""

from pathlib import Path
from typing import TYPE_CHECKING

from cortex_shared.logs import get_logger
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cortex_api.db.migrations import REVISIONS

if TYPE_CHECKING:
    from alembic.config import Config

_log = get_logger("db.migrate")

# Any constant that no other user of the database takes.
PREPARE_LOCK = 7_226_071_001
_LOCK_WAIT = "60s"
_LOCK_TIMEOUT = "5s"


async def migrate(connection: AsyncConnection) -> None:
    """Upgrade inside the connection's transaction, holding the lock until that ends.

    A database of a later release is left as it is. Raises SQLAlchemy's errors.
    """
    await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'"))
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": PREPARE_LOCK})
    await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
    current = await _revision(connection)
    if current == REVISIONS[-1]:
        return
    if current is not None and current not in REVISIONS:
        _log.warning("database.newer", revision=current, known=REVISIONS[-1])
        return
    await connection.run_sync(_upgrade)
    _log.info("database.migrated", before=current, after=REVISIONS[-1])


async def _revision(connection: AsyncConnection) -> str | None:
    if (await connection.execute(text("SELECT to_regclass('alembic_version')"))).scalar_one() is None:
        return None
    return (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one_or_none()


def alembic_config(connection: Connection) -> "Config":
    """Alembic's configuration, bound to a connection; also for tests and for writing a new revision."""
    from alembic.config import Config  # loaded only where there is something to migrate: it costs 10 MiB

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    from alembic import command

    command.upgrade(alembic_config(connection), "head")
