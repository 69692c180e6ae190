"""ProcessRuntime: engines as plain processes, each under a runner that outlives the agent."""

import marshal
import os
import py_compile
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from errno import EACCES, EAGAIN, EDQUOT, ENOENT, ENOEXEC, ENOSPC, ENOTDIR
from pathlib import Path
from secrets import token_hex
from typing import Literal

import anyio
from cortex_shared import procfs
from cortex_shared.clock import utc_now
from cortex_shared.contracts.commands import Start
from cortex_shared.errors import NotFound, Unavailable
from cortex_shared.logs import get_logger
from pydantic import BaseModel, ValidationError

from cortex_node_agent.runtime import Ended, Orders, Usage
from cortex_node_agent.store import StateFolder

_log = get_logger("process")

_SPAWN_SECONDS = 20.0
_BEGIN_SECONDS = 5.0
_BEYOND_GRACE_SECONDS = 10.0
_LEFTOVER_SECONDS = 5.0
# Not at once: the engine that was just started wants the CPU first.
_SPARE_AFTER_SECONDS = 0.3


class RunRecord(BaseModel, frozen=True):
    """run.json: the head is written by the agent, the rest by the runner. No secret is in it."""

    run: str
    boot_id: str
    start: Start
    port: int
    restarts: int
    oom_kills: int
    runner_pid: int = 0
    runner_ticks: int = 0
    log_start: int = 0
    pid: int = 0
    ticks: int = 0
    started_at: float = 0
    status: int | None = None
    signal: int | None = None
    asked: bool = False
    ended_at: float | None = None


class ProcessRun:
    """An engine and its runner. `child` is the runner where this very agent started it."""

    def __init__(
        self, record: RunRecord, path: Path, pidfd: int, child: subprocess.Popen[bytes] | None
    ) -> None:
        self._record = record
        self._path = path
        self._pidfd = pidfd
        self._child = child
        self._ended: Ended | None = None

    @property
    def id(self) -> str:
        return self._record.run

    @property
    def start(self) -> Start:
        return self._record.start

    @property
    def pid(self) -> int | None:
        return self._record.pid or None

    @property
    def port(self) -> int:
        return self._record.port

    @property
    def restarts(self) -> int:
        return self._record.restarts

    @property
    def started_at(self) -> datetime:
        return datetime.fromtimestamp(self._record.started_at, UTC)

    @property
    def log_start(self) -> int:
        return self._record.log_start

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._pidfd)

    @property
    def lives(self) -> bool:
        """Whether its runner does."""
        return procfs.is_same(self._record.runner_pid, self._record.runner_ticks)

    async def wait(self) -> Ended:
        if self._ended is None:
            await _exited(self._pidfd)
            if self._child is not None:
                self._child.wait()
            self._ended = await _conclude(read_record(self._path) or self._record)
        return self._ended

    async def stop(self) -> None:
        self._signal(signal.SIGTERM)
        with anyio.move_on_after(self.start.plan.grace_seconds + _BEYOND_GRACE_SECONDS):
            await self.wait()
            return
        await self.kill()

    async def kill(self) -> None:
        self._signal(signal.SIGUSR1)
        with anyio.move_on_after(_BEYOND_GRACE_SECONDS):
            await self.wait()
            return
        # The runner itself hangs (a disk that does not answer): the engine dies with it.
        self._signal(signal.SIGKILL)
        await self.wait()

    def age_seconds(self) -> float:
        return procfs.age_seconds(self._record.ticks)

    def usage(self) -> Usage | None:
        own = [found for found in procfs.processes() if found.session == self._record.pid]
        if not own:
            return None
        return Usage(
            sum(found.cpu_seconds for found in own), sum(found.resident_bytes for found in own) / 2**20
        )

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)


class ProcessRuntime:
    """Starts runners and finds them again. The engine's session is its pid; its mark is CORTEX_RUN."""

    kind: Literal["process", "docker"] = "process"

    def __init__(
        self, state: StateFolder, *, log_file_bytes_max: int, log_files_max: int, base_env: Mapping[str, str]
    ) -> None:
        """Compiles the runner into the state folder: each start would else spend 8 ms on it."""
        self._state = state
        self._log_file_bytes_max = log_file_bytes_max
        self._log_files_max = log_files_max
        self._env = {name: base_env[name] for name in ("LD_LIBRARY_PATH",) if name in base_env}
        self._boot_id = procfs.boot_id()
        self._spare: subprocess.Popen[bytes] | None = None
        self._spare_taken = anyio.Event()
        source = Path(__file__).with_name("runner.py")
        compiled = state.path / "runner.pyc"
        self._runner = str(source)
        with suppress(OSError):
            py_compile.compile(str(source), str(compiled), doraise=True)
            self._runner = str(compiled)

    async def start(self, orders: Orders) -> ProcessRun:
        """Shielded: a start takes some 20 ms, and one that was begun must be known."""
        run: ProcessRun | None = None
        with anyio.CancelScope(shield=True):
            run = await self._start(orders)
        assert run is not None, "a shielded scope is not cancelled"
        return run

    async def _start(self, orders: Orders) -> ProcessRun:
        instance = orders.start.instance
        record = RunRecord(
            run=token_hex(8),
            boot_id=self._boot_id,
            start=orders.start,
            port=orders.port,
            restarts=orders.restarts,
            oom_kills=procfs.oom_kills(),
        )
        path = self._state.record(instance)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._state.log(instance).mkdir(mode=0o700, parents=True, exist_ok=True)
            child = self._spawn(record, orders, path)
        except OSError as error:
            raise _not_started(error.errno, error.strerror) from error
        assert child.stdout is not None
        with child.stdout as answer:
            line = b""
            with anyio.move_on_after(_SPAWN_SECONDS):
                line = await _read_line(answer.fileno())
        words = line.decode(errors="replace").split(maxsplit=2)
        if len(words) < 3 or words[0] != "ok":
            child.kill()
            child.wait()
            await _kill_leftovers(None, record.run)
            number = int(words[1]) if len(words) > 1 and words[1].isdecimal() else None
            if number == EAGAIN:
                await self._end_other(instance)
            if len(words) == 3 and number is not None and words[2].strip() == orders.argv[0]:
                raise _not_executed(orders.argv[0], number)
            raise _not_started(number, os.strerror(number) if number else "the runner failed")
        known = read_record(path) or record.model_copy(
            update={"pid": int(words[1]), "ticks": int(words[2]), "started_at": utc_now().timestamp()}
        )
        return ProcessRun(known, path, os.pidfd_open(child.pid), child)

    async def _end_other(self, instance: str) -> None:
        """A runner that was given its orders by an earlier agent came before ours."""
        other = await self.find(instance)
        if isinstance(other, ProcessRun):
            _log.warning("engine.other_ended", instance=instance, pid=other.pid)
            await other.kill()

    def _spawn(self, record: RunRecord, orders: Orders, path: Path) -> subprocess.Popen[bytes]:
        head = record.model_dump_json(include={"run", "boot_id", "start", "port", "restarts", "oom_kills"})
        told = {
            "argv": list(orders.argv),
            "env": {**orders.env, "CORTEX_RUN": record.run},
            "cwd": str(path.parent),
            "run": record.run,
            "log_dir": str(self._state.log(orders.start.instance)),
            "log_file_bytes_max": self._log_file_bytes_max,
            "log_files_max": self._log_files_max,
            "grace_seconds": orders.start.plan.grace_seconds,
            "record": str(path),
            "head": head.removesuffix("}"),
            "name": orders.start.plan.container_name,
        }
        child, self._spare = self._spare, None
        self._spare_taken.set()
        if child is None or child.poll() is not None:
            child = self._boot()
        assert child.stdin is not None
        with suppress(BrokenPipeError), child.stdin as orders_in:
            orders_in.write(marshal.dumps(told))
        return child

    def _boot(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", self._runner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=self._env,
            start_new_session=True,
        )

    async def keep_spare(self) -> None:
        """Keep one runner that waits for orders, until cancelled: it saves a start its 10 ms of booting.

        It costs some 3 MiB, and ends by itself, at the end of its input, however this process ends.
        """
        try:
            while True:
                if self._spare is None:
                    with suppress(OSError):
                        self._spare = self._boot()
                self._spare_taken = anyio.Event()
                await self._spare_taken.wait()
                await anyio.sleep(_SPARE_AFTER_SECONDS)
        finally:
            if self._spare is not None:
                self._spare.kill()
                self._spare.wait()
                for pipe in (self._spare.stdin, self._spare.stdout):
                    if pipe is not None:
                        pipe.close()

    async def find(self, instance: str) -> ProcessRun | Ended | None:
        path = self._state.record(instance)
        record = read_record(path)
        if record is None:
            return None
        if record.boot_id != self._boot_id:
            return Ended(datetime.fromtimestamp(record.ended_at or record.started_at, UTC), watched=False)
        try:
            pidfd = os.pidfd_open(record.runner_pid)
        except (ProcessLookupError, ValueError):
            return await _conclude(record)
        # Looked at after the pidfd was opened: from then on the pid cannot change hands.
        if not procfs.is_same(record.runner_pid, record.runner_ticks):
            os.close(pidfd)
            return await _conclude(record)
        run = ProcessRun(record, path, pidfd, None)
        return run if record.pid else await self._begun(run, path)

    async def _begun(self, run: ProcessRun, path: Path) -> ProcessRun | Ended | None:
        """A run whose runner has not started the engine yet, when it has; it is ended if it never does."""
        with anyio.move_on_after(_BEGIN_SECONDS):
            while run.lives:
                record = read_record(path)
                if record is not None and record.pid:
                    return await self.find(path.parent.name)
                await anyio.sleep(0.01)
        await run.kill()
        return await run.wait()


def read_record(path: Path) -> RunRecord | None:
    """What a runner wrote; None when there is nothing that can be read."""
    try:
        return RunRecord.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


async def _conclude(record: RunRecord) -> Ended:
    """How it ended, now that its runner is gone; what a killed runner left is killed."""
    if record.ended_at is not None:
        return Ended(
            datetime.fromtimestamp(record.ended_at, UTC),
            record.status,
            record.signal,
            asked=record.asked,
            oom_killed=record.signal == signal.SIGKILL
            and not record.asked
            and procfs.oom_kills() > record.oom_kills,
        )
    leader = procfs.stat(record.pid) if record.pid else None
    # A pid that another process has by now names another session.
    session = None if leader is not None and leader.start_ticks != record.ticks else record.pid or None
    await _kill_leftovers(session, record.run)
    return Ended(utc_now(), watched=False, oom_killed=procfs.oom_kills() > record.oom_kills)


async def _kill_leftovers(session: int | None, run: str) -> None:
    with anyio.move_on_after(_LEFTOVER_SECONDS):
        while found := procfs.belonging(session, f"CORTEX_RUN={run}"):
            _log.info("engine.leftovers_killed", pids=found)
            for pid in found:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            await anyio.sleep(0.02)


async def _exited(pidfd: int) -> None:
    # A descriptor of its own: one descriptor cannot be waited for twice.
    fd = os.dup(pidfd)
    try:
        await anyio.wait_readable(fd)
    finally:
        os.close(fd)


async def _read_line(fd: int) -> bytes:
    os.set_blocking(fd, False)
    line = b""
    while not line.endswith(b"\n"):
        await anyio.wait_readable(fd)
        part = os.read(fd, 4096)
        if not part:
            break
        line += part
    return line


def _not_executed(program: str, number: int) -> NotFound | Unavailable:
    if number in (ENOENT, ENOTDIR, EACCES, ENOEXEC):
        return NotFound(
            f"{program} cannot be executed: {os.strerror(number)}",
            code="no_program",
            remedy="install it, or correct the agent's programs setting (--program NAME=TARGET)",
        )
    return _not_started(number, os.strerror(number))


def _not_started(number: int | None, text: str | None) -> Unavailable:
    if number == EAGAIN:
        return Unavailable(
            "another runner of this instance, started by an earlier agent, was still there",
            code="still_runs",
            remedy="it is being ended; this one is started by itself",
        )
    if number in (ENOSPC, EDQUOT):
        return Unavailable(
            "the disk of the agent's state folder is full",
            code="disk_full",
            remedy="make room on it; the engine is started as soon as there is",
        )
    return Unavailable(
        f"the engine's runner could not be started: {text}",
        code="not_started",
        remedy="see the agent's log; it tries again by itself",
    )
