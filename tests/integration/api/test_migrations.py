"""The migrations make what the tables say, and are known without Alembic."""

from alembic import command
from alembic.script import ScriptDirectory
from cortex_api.db.migrate import alembic_config, migrate
from cortex_api.db.migrations import REVISIONS
from cortex_api.db.session import create_engine
from sqlalchemy import Connection, text

from tests.servers import ServersUnderTest


async def test_an_upgraded_database_is_what_the_tables_say(servers: ServersUnderTest) -> None:
    engine = create_engine(await servers.fresh_database(scheme="postgresql+asyncpg"))
    async with engine.begin() as connection:
        await migrate(connection)
        # Raises when a new revision would have anything to do.
        await connection.run_sync(lambda bound: command.check(alembic_config(bound)))
        found = await connection.execute(text("SELECT version_num FROM alembic_version"))
        assert found.scalar_one() == REVISIONS[-1]
    await engine.dispose()


async def test_the_list_of_revisions_is_alembics(servers: ServersUnderTest) -> None:
    engine = create_engine(await servers.fresh_database(scheme="postgresql+asyncpg"))

    def revisions(bound: Connection) -> tuple[str, ...]:
        script = ScriptDirectory.from_config(alembic_config(bound))
        return tuple(revision.revision for revision in script.walk_revisions())[::-1]

    async with engine.connect() as connection:
        assert await connection.run_sync(revisions) == REVISIONS
    await engine.dispose()


async def test_a_downgrade_leaves_nothing(servers: ServersUnderTest) -> None:
    engine = create_engine(await servers.fresh_database(scheme="postgresql+asyncpg"))
    async with engine.begin() as connection:
        await migrate(connection)
        await connection.run_sync(lambda bound: command.downgrade(alembic_config(bound), "base"))
        left = await connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
        assert [row[0] for row in left] == ["alembic_version"]
    await engine.dispose()


async def test_a_database_of_a_later_release_is_left_alone(servers: ServersUnderTest) -> None:
    engine = create_engine(await servers.fresh_database(scheme="postgresql+asyncpg"))
    async with engine.begin() as connection:
        await migrate(connection)
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    async with engine.begin() as connection:
        await migrate(connection)
        found = await connection.execute(text("SELECT version_num FROM alembic_version"))
        assert found.scalar_one() == "9999"
    await engine.dispose()


async def test_a_half_done_migration_is_undone(servers: ServersUnderTest) -> None:
    engine = create_engine(await servers.fresh_database(scheme="postgresql+asyncpg"))
    async with engine.connect() as connection:
        transaction = await connection.begin()
        await migrate(connection)
        await transaction.rollback()
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT to_regclass('models')"))).scalar_one() is None
    await engine.dispose()
