"""What the servers cannot start with is said in plain words, and changes nothing."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import nats
import nats.errors
import nats.js.errors
import psutil
import pytest
from cortex_cli.embedded.process import Process
from cortex_shared.errors import Unavailable

from tests.integration.embedded.conftest import User
from tests.servers import connect_postgres, run_servers

PATIENCE_SECONDS = 30


def refused(home: Path, *options: str, before: Sequence[str] = ()) -> dict[str, str]:
    """The error with which the servers do not start."""
    command = [*before, sys.executable, "-m", "cortex_cli.embedded", "--home", str(home), *options]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1, ended.stderr
    return cast("dict[str, str]", json.loads(ended.stderr.splitlines()[-1])["error"])


def test_a_second_one_is_told_who_is_there(user: User) -> None:
    with run_servers(user.home, before=user.before) as servers:
        error = refused(user.home, before=user.before)
        assert error["code"] == "embedded.already_up"
        assert f"pid {servers.supervisor_pid}" in error["message"]


def test_an_explicit_port_that_is_taken(user: User) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refused(user.home, "--nats-port", str(port), before=user.before)
    assert error["code"] == "embedded.port_taken"
    assert str(port) in error["message"]


def test_the_default_port_moves_on_and_stays_where_it_went(user: User) -> None:
    other = run_servers(user.folder / "second", before=user.before)
    with run_servers(user.home, before=user.before) as first, other as second:
        moved = second.nats_url.rpartition(":")[2]
        assert moved != first.nats_url.rpartition(":")[2]
    with run_servers(user.folder / "second", before=user.before) as again:
        assert again.nats_url.rpartition(":")[2] == moved


def test_data_of_another_version(user: User) -> None:
    with run_servers(user.home, before=user.before):
        pass
    (user.home / "data/postgres/PG_VERSION").write_text("12\n")
    error = refused(user.home, before=user.before)
    assert error["code"] == "embedded.postgres_version"
    assert "Postgres 12" in error["message"]
    assert "18" in error["message"]


def test_something_else_in_the_place_of_the_data(user: User) -> None:
    with run_servers(user.home, before=user.before):
        pass
    (user.home / "data/postgres/PG_VERSION").unlink()
    error = refused(user.home, before=user.before)
    assert error["code"] == "embedded.postgres_data"
    assert (user.home / "data/postgres/global/pg_control").exists()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 30 MB: a Postgres cluster needs more."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    with tempfile.TemporaryDirectory(prefix="cortex-test-", dir="/tmp") as folder:
        options = ["-t", "tmpfs", "-o", "size=30m", "tmpfs", folder]
        if subprocess.run(["mount", *options], capture_output=True).returncode != 0:
            pytest.skip("mounting is not allowed here")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_too_small_for_the_first_start(small_disk: Path) -> None:
    error = refused(small_disk / "home")
    assert error["code"] == "embedded.disk_full"
    assert str(small_disk) in (error["remedy"] or "")


async def test_a_disk_that_filled_up(small_disk: Path) -> None:
    grow = ["mount", "-o", "remount,size=200m", str(small_disk)]
    subprocess.run(grow, check=True)
    home = small_disk / "home"
    with run_servers(home):
        pass
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    error = refused(home)
    assert error["code"] == "embedded.disk_full"
    filler.unlink()
    with run_servers(home) as servers:
        connection = await connect_postgres(servers.postgres_url)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()


async def test_a_child_that_cannot_be_written_down_is_not_left_running(small_disk: Path) -> None:
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    before = psutil.Process().children()
    with open(os.devnull, "wb") as log, pytest.raises(Unavailable):
        Process.start(
            ["sleep", "1000"],
            env={"PATH": "/usr/bin:/bin"},
            cwd=small_disk,
            log=log.fileno(),
            record=small_disk / "a.json",
            stop_signal=signal.SIGTERM,
            stop_seconds=1,
            identity="same",
            on_exit=lambda: None,
        )
    assert psutil.Process().children() == before


async def test_servers_write_again_once_a_full_disk_has_room(small_disk: Path) -> None:
    grow = ["mount", "-o", "remount,size=200m", str(small_disk)]
    subprocess.run(grow, check=True)
    filler = small_disk / "filler"
    with run_servers(small_disk / "home", careless=False) as servers:
        bus = await nats.connect(servers.nats_url)
        await bus.jetstream().add_stream(name="S", subjects=["s.>"])
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises((nats.errors.Error, nats.js.errors.Error)):
            await bus.jetstream().publish("s.a", bytes(100_000), timeout=1)
        filler.unlink()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with contextlib.suppress(nats.errors.Error, nats.js.errors.Error):
                    await bus.jetstream().publish("s.a", bytes(100_000), timeout=1)
                    break
        await bus.close()


async def test_a_home_with_a_long_path(user: User) -> None:
    home = user.folder / ("long" * 25) / ("path" * 20)
    with run_servers(home, before=user.before) as servers:
        connection = await connect_postgres(servers.postgres_url)
        await connection.close()
        await servers.flush_redis()
        sockets = Path((home / "run/sockets").read_text().strip())
    shutil.rmtree(sockets)


def test_an_interrupted_first_start_leaves_nothing_running(user: User) -> None:
    command = [*user.before, sys.executable, "-m", "cortex_cli.embedded", "--home", str(user.home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the first server has been started; Postgres is being made
        process.send_signal(signal.SIGINT)
        process.stderr.read()  # ends when nobody has it open any more
        assert process.wait(30) == 0
    with run_servers(user.home, before=user.before):
        pass
