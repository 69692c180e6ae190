"""Real Postgres, NATS and Redis for tests: one set a session, made fresh on request.

A conftest takes a fixture by `from tests.servers import servers`, named in `__all__`.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import randbelow, token_hex
from typing import IO, cast
from urllib.parse import quote

import asyncpg
import pytest
from cortex_shared.nats_auth import Authority, Role

UP_SECONDS = 60.0


class ServersUnderTest:
    """A running set. URLs hold passwords and stay valid for the whole session, whatever is restarted.

    `postgres_url` names the server's own database; use `fresh_database()` for tests.
    """

    def __init__(self, process: subprocess.Popen[str], home: Path, authority: Authority | None) -> None:
        self.home = home
        self._authority = authority
        self._process = process
        found = self._read()
        self.postgres_url = cast("str", found["postgres"])
        self.nats_url = cast("str", found["nats"])
        self.redis_url = cast("str", found["redis"])
        self._pids = cast("dict[str, int]", found["pids"])

    async def fresh_database(self, *, scheme: str = "postgresql") -> str:
        """The URL of a new, empty database; `scheme` for instance `postgresql+asyncpg`."""
        name = f"test_{token_hex(6)}"
        connection = await connect_postgres(self.postgres_url)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        return self.postgres_url.replace("/cortex?", f"/{name}?").replace("postgresql:", f"{scheme}:", 1)

    async def drop_database(self, url: str) -> None:
        """Remove a database that `fresh_database` made, whoever is still connected."""
        name = url.rpartition("?")[0].rpartition("/")[2]
        connection = await connect_postgres(self.postgres_url)
        try:
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        finally:
            await connection.close()

    async def flush_redis(self) -> None:
        """Empty every database of Redis, in place: connections live on."""
        from redis.asyncio import Redis  # here, for tests of Postgres alone need not load it

        client = Redis.from_url(self.redis_url)  # pyright: ignore[reportUnknownMemberType] (untyped **kwargs)
        try:
            await client.flushall()
        finally:
            await client.aclose()

    async def fresh_nats(self) -> str:
        """Restart NATS with an empty store (about 0.1 s); returns its URL, which stays the same."""
        await self.empty("nats")
        return self.nats_url

    def credentials(self, name: str, *, role: Role = "service") -> Path:
        """A file of NATS credentials for a service or a node; only of `secured_servers`."""
        assert self._authority is not None, "these servers take a user and a password: they are in nats_url"
        path = self.home / f"{role}-{name}.creds"
        if not path.exists():
            path.write_text(self._authority.credentials(name, role=role))
        return path

    async def restart(self, name: str) -> None:
        """Stop `postgres`, `nats` or `redis` cleanly and start it again; returns when it is up."""
        await asyncio.to_thread(self._order, f"restart {name}")

    async def empty(self, name: str) -> None:
        """Like `restart`, but it comes back with no data; fresh databases are gone, too."""
        await asyncio.to_thread(self._order, f"empty {name}")

    def kill(self, name: str) -> None:
        """kill -9 it. The supervisor brings it back at once, with its data."""
        os.kill(self.pid(name), signal.SIGKILL)

    async def wait(self, name: str) -> None:
        """After `kill`: until it is up again."""
        await asyncio.to_thread(self._order, f"wait {name} {self.pid(name)}")

    @property
    def supervisor_pid(self) -> int:
        """The process that all three are children of."""
        return self._process.pid

    def pid(self, name: str) -> int:
        """Its pid as of the last order."""
        return self._pids[name]

    def _order(self, words: str) -> None:
        cast("IO[str]", self._process.stdin).write(words + "\n")
        cast("IO[str]", self._process.stdin).flush()
        self._pids = cast("dict[str, int]", self._read()["pids"])

    def _read(self) -> dict[str, object]:
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"the servers ended with status {self._process.wait()}; see the output above")
        found = cast("dict[str, object]", json.loads(line))
        if "error" in found:
            raise RuntimeError(found["error"])
        return found


@contextmanager
def run_servers(
    home: Path, *, authority: Authority | None = None, careless: bool = True, before: Sequence[str] = ()
) -> Generator[ServersUnderTest]:
    """Start a set in `home`, hand it over, stop it. For a test that wants one of its own.

    With an `authority` NATS wants its credentials, as in production; without, the user in `nats_url`.
    `careless` means no fsync; `before` are words put before the command (`setpriv ...`).
    """
    options = ["--careless"] if careless else []
    if not before:
        _scatter(home)
    if authority is not None:
        home.mkdir(parents=True, exist_ok=True)
        (home / "authority.conf").write_text(authority.server_config())
        options += ["--nats-authority", str(home / "authority.conf")]
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "cortex_cli.embedded", "--home", str(home), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield ServersUnderTest(process, home, authority)
    finally:
        process.terminate()
        process.wait(UP_SECONDS)
        cast("IO[str]", process.stdin).close()
        cast("IO[str]", process.stdout).close()


def _scatter(home: Path) -> None:
    """Let a new home remember a port of its own: sets that run side by side would take each other's.

    Below the range of which the kernel gives ports to clients.
    """
    config = home / "config.json"
    if not config.exists():
        home.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps({"nats_port": 10_000 + randbelow(9_000)}))


@pytest.fixture(scope="session")
def servers() -> Iterator[ServersUnderTest]:
    """One running set for the session."""
    with _folder() as folder, run_servers(Path(folder) / "home") as running:
        yield running


@pytest.fixture(scope="session")
def secured_servers() -> Iterator[ServersUnderTest]:
    """Another set, whose NATS lets in by credentials only: see `ServersUnderTest.credentials`."""
    with _folder() as folder, run_servers(Path(folder) / "home", authority=Authority.create()) as running:
        yield running


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cortex-test-", ignore_cleanup_errors=True)


async def connect_postgres(url: str) -> asyncpg.Connection:
    """asyncpg's connect, with a type."""
    return cast("asyncpg.Connection", await asyncpg.connect(url))


def redis_url_of(url: str, database: int) -> str:
    """The same Redis, another of its 16 databases."""
    return f"{url.rpartition('?')[0]}?db={quote(str(database))}"
