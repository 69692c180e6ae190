"""Processes of a benchmark: started on a core of their own, measured, ended whatever happens."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_END_SECONDS = 10.0
_AUTOGROUP = Path("/proc/self/autogroup")


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core is the gateways', which ones are the load's and everything else's."""

    gateway: int
    rest: frozenset[int]

    @classmethod
    def choose(cls) -> "Cores":
        """The first for the gateways; on a machine with one core it is everybody's."""
        mine = sorted(os.sched_getaffinity(0))
        return cls(mine[0], frozenset(mine[1:] or mine))


class Process:
    """A program with the processes that it starts."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self._popen = popen
        self.log = log

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def pids(self) -> list[int]:
        """Itself and all below it, and whoever else is of the session that it leads."""
        found = {self.pid}
        tree = sorted(_parents_and_sessions())
        grown = True
        while grown:
            more = {pid for pid, parent, session in tree if parent in found or session == self.pid}
            grown = not more <= found
            found |= more
        return sorted(found)

    def cpu(self) -> dict[int, int]:
        """Thread -> nanoseconds that it has run, from schedstat."""
        return {thread: ran for pid in self.pids() for thread, ran in _threads(pid)}

    def wakes(self) -> int:
        """How often its threads have gone to sleep, and so been woken."""
        return sum(_sleeps(pid) for pid in self.pids())

    def resident_mib(self) -> float:
        """Resident memory of all its processes."""
        return sum(_resident_kib(pid) for pid in self.pids()) / 1024

    def end(self) -> None:
        """SIGTERM, then SIGKILL to whatever is left."""
        pids = self.pids() if self.alive else []
        if self.alive:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        for pid in pids:
            if pid != self.pid and _session(pid) == self.pid:
                with suppress(ProcessLookupError):  # it has ended since
                    os.kill(pid, signal.SIGKILL)


def cpu_between(before: Mapping[int, int], after: Mapping[int, int]) -> float:
    """Seconds of CPU; a thread that ended in between is not counted."""
    return sum(ran - before.get(thread, 0) for thread, ran in after.items()) / 1e9


def go_first() -> None:
    """Put this session, and those that `running` starts, before all others: needs root.

    Sessions are scheduled as groups (autogroup in sched(7)), between which nice values of processes say
    nothing.
    """
    _AUTOGROUP.write_text("-20")


def group_nice(file: Path) -> int:
    """The nice value of the session's group, from proc(5)'s autogroup; 0 where it has none.

    A kernel without such groups has no file, and the file of a process that is in none is empty.
    """
    told = file.read_text() if file.exists() else ""
    return int(told.split()[-1]) if told else 0


@contextmanager
def running(
    command: Sequence[str], log: Path, *, cores: frozenset[int], environment: Mapping[str, str] | None = None
) -> Generator[Process]:
    """Start it on these cores, as the leader of a session of its own, and end it after."""
    mine = os.sched_getaffinity(0)
    # Inherited at the fork, so that a runtime that counts its cores as it starts counts these.
    os.sched_setaffinity(0, cores)
    try:
        with log.open("wb") as out:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=None if environment is None else os.environ | dict(environment),
                start_new_session=True,
            )
    finally:
        os.sched_setaffinity(0, mine)
    process = Process(popen, log)
    try:
        if (nice := group_nice(_AUTOGROUP)) != 0:
            Path(f"/proc/{popen.pid}/autogroup").write_text(str(nice))
        yield process
    finally:
        process.end()


def wait_for_port(process: Process, port: int, seconds: float = 60) -> None:
    """Until it listens. Raises RuntimeError with the end of its log when it ends or takes longer."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if not process.alive or time.monotonic() > until:
                raise RuntimeError(f"it does not listen; the end of its log:\n{tail(process.log)}") from None
            time.sleep(0.05)
        else:
            return


def tail(log: Path, size: int = 2000) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-size:]


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _stat(pid: int | str) -> list[str]:
    # The fields after the command, which may hold anything: state, parent, group, session, ...
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def _session(pid: int) -> int | None:
    try:
        return int(_stat(pid)[3])
    except OSError:
        return None


def _parents_and_sessions() -> Iterator[tuple[int, int, int]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = _stat(folder.name)
            except OSError:
                continue
            yield int(folder.name), int(fields[1]), int(fields[3])


def _threads(pid: int) -> Iterator[tuple[int, int]]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for thread in threads:
        try:
            yield int(thread.name), int((thread / "schedstat").read_text().split()[0])
        except OSError:
            continue


def _sleeps(pid: int) -> int:
    count = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        lines = (thread / "status").read_text().splitlines()
        count += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))
    return count


def _resident_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)
