"""kill -9 of each server, and of the supervisor: all come back, with what they had acknowledged."""

import asyncio
import contextlib
import os
import signal
from typing import cast

import asyncpg
import nats
import psutil
from redis.asyncio import Redis

from tests.integration.embedded.conftest import User
from tests.servers import ServersUnderTest, connect_postgres, run_servers

PATIENCE_SECONDS = 20


async def _write(servers: ServersUnderTest, count: int) -> None:
    """Write `count` rows, messages and keys; returns when every one was acknowledged."""
    connection = await connect_postgres(servers.postgres_url)
    await connection.execute("CREATE TABLE IF NOT EXISTS t (i int)")
    for number in range(count):
        await connection.execute("INSERT INTO t VALUES ($1)", number)
    await connection.close()
    bus = await nats.connect(servers.nats_url)
    await bus.jetstream().add_stream(name="S", subjects=["s.>"])
    for number in range(count):
        await bus.jetstream().publish("s.a", str(number).encode())
    await bus.close()
    redis = Redis.from_url(servers.redis_url)
    for number in range(count):
        await redis.set(f"key{number}", number)
    await redis.aclose()


async def _counted(servers: ServersUnderTest) -> tuple[int, int, int]:
    connection = await connect_postgres(servers.postgres_url)
    rows = cast("int", await connection.fetchval("SELECT count(*) FROM t"))
    await connection.close()
    bus = await nats.connect(servers.nats_url)
    messages = (await bus.jetstream().stream_info("S")).state.messages
    await bus.close()
    redis = Redis.from_url(servers.redis_url)
    keys = await redis.dbsize()
    await redis.aclose()
    return rows, messages, keys


async def test_each_server_comes_back_with_its_data(user: User) -> None:
    with run_servers(user.home, careless=False, before=user.before) as servers:
        await _write(servers, 100)
        for name in ("postgres", "nats", "redis"):
            before = servers.pid(name)
            servers.kill(name)
            await servers.wait(name)
            assert servers.pid(name) != before
            assert await _counted(servers) == (100, 100, 100), name


async def test_postgres_comes_back_while_sessions_hold_its_memory(user: User) -> None:
    with run_servers(user.home, careless=False, before=user.before) as servers:
        sessions = [await connect_postgres(servers.postgres_url) for _ in range(5)]
        async with asyncio.TaskGroup() as tasks:
            sleeping = [tasks.create_task(_cut_off(session)) for session in sessions]
            await asyncio.sleep(0)
            servers.kill("postgres")
            await servers.wait("postgres")
        assert all(task.result() for task in sleeping)
        connection = await connect_postgres(servers.postgres_url)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()


async def _cut_off(session: asyncpg.Connection) -> bool:
    try:
        await session.execute("SELECT pg_sleep(60)")
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return True
    finally:
        session.terminate()
    return False


async def test_a_killed_supervisor_leaves_no_server_and_the_next_one_starts(user: User) -> None:
    with run_servers(user.home, careless=False, before=user.before) as servers:
        await _write(servers, 10)
        family = psutil.Process(servers.supervisor_pid).children(recursive=True)
        assert len(family) >= 3
        port = servers.nats_url
        os.kill(servers.supervisor_pid, signal.SIGKILL)
    # At once: the next one meets servers that are still going down, and takes their places.
    with run_servers(user.home, careless=False, before=user.before) as servers:
        assert servers.nats_url == port
        assert await _counted(servers) == (10, 10, 10)
        assert not [process for process in family if _lives(process)]


async def test_servers_end_by_themselves_when_the_supervisor_is_killed(user: User) -> None:
    with run_servers(user.home, before=user.before) as servers:
        family = psutil.Process(servers.supervisor_pid).children(recursive=True)
        os.kill(servers.supervisor_pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while any(_lives(process) for process in family):
                await asyncio.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def test_a_cut_off_initialisation_is_done_again(user: User) -> None:
    with run_servers(user.home, before=user.before) as servers:
        made = user.home / "data/postgres"
        await servers.restart("postgres")
        os.kill(servers.supervisor_pid, signal.SIGKILL)
    # What a kill -9 in the middle of initdb leaves: a folder under the temporary name only.
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (made / "postmaster.pid").exists():
            await asyncio.sleep(0.02)
    made.rename(made.with_name("postgres.new"))
    (made.with_name("postgres.new") / "global/pg_control").unlink()
    with run_servers(user.home, before=user.before) as servers:
        connection = await connect_postgres(servers.postgres_url)
        assert await connection.fetchval("SELECT current_database()") == "cortex"
        await connection.close()
    assert not made.with_name("postgres.new").exists()


async def test_a_stale_lock_file_with_a_recycled_pid_does_not_block(user: User) -> None:
    with run_servers(user.home, before=user.before) as servers:
        lock = user.home / "data/postgres/postmaster.pid"
        socket_lock = next((user.home / "run").rglob(".s.PGSQL.5432.lock"))
        lines, socket_lines = lock.read_text().splitlines(), socket_lock.read_text().splitlines()
        owner = lock.stat()
    lines[0] = socket_lines[0] = "1"  # a pid that lives and is another's, as after a reboot
    for path, text in ((lock, lines), (socket_lock, socket_lines)):
        path.write_text("\n".join(text) + "\n")
        os.chown(path, owner.st_uid, owner.st_gid)
    with run_servers(user.home, before=user.before) as servers:
        connection = await connect_postgres(servers.postgres_url)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()


async def test_a_lost_password_is_renewed(user: User) -> None:
    with run_servers(user.home, before=user.before) as servers:
        before = servers.postgres_url
    (user.home / "secrets/postgres").unlink()
    with run_servers(user.home, before=user.before) as servers:
        assert servers.postgres_url != before
        connection = await connect_postgres(servers.postgres_url)
        await connection.close()
        try:
            await asyncpg.connect(before)
        except asyncpg.InvalidPasswordError:
            pass
        else:
            raise AssertionError("the old password still works")
