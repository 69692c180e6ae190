"""Processes as /proc shows them: identity, sessions, age, and what they use."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """Fields of /proc/PID/stat (proc(5)). `start_ticks`: clock ticks since boot."""

    pid: int
    state: str
    session: int
    start_ticks: int
    cpu_seconds: float
    resident_bytes: int

    @property
    def alive(self) -> bool:
        """False for one that has ended and is not yet reaped."""
        return self.state not in "ZX"


def boot_id() -> str:
    """Changes at every boot; a pid and start time mean nothing across boots."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def stat(pid: int) -> ProcessStat | None:
    """The process; None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # Counted after the name, which may hold anything.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return ProcessStat(
        pid,
        fields[0].decode(),
        int(fields[3]),
        int(fields[19]),
        (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND,
        int(fields[21]) * _PAGE_BYTES,
    )


def is_same(pid: int, start_ticks: int) -> bool:
    """Whether the process with this pid is alive and the one that started then (on this boot)."""
    found = stat(pid)
    return found is not None and found.alive and found.start_ticks == start_ticks


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is none, or a zombie."""
    found = stat(pid)
    return found.start_ticks if found is not None and found.alive else None


def age_seconds(start_ticks: int) -> float:
    """How long ago a process started that began at `start_ticks`; no setting of the clock changes it."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / _TICKS_PER_SECOND)


def processes() -> Iterator[ProcessStat]:
    """All processes that are alive."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            found = stat(int(name))
            if found is not None and found.alive:
                yield found


def belonging(session: int | None, mark: str) -> list[int]:
    """Processes of a session, and those that have `mark` (NAME=VALUE) in their environment."""
    wanted = mark.encode()
    return [
        found.pid
        for found in processes()
        if found.pid != os.getpid() and (found.session == session or wanted in _environment(found.pid))
    ]


def _environment(pid: int) -> list[bytes]:
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return file.read().split(b"\0")
    return []


def oom_kills() -> int:
    """How many processes the kernel has killed for memory since boot; 0 where it does not say."""
    with suppress(OSError, ValueError), open("/proc/vmstat") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
