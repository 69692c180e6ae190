"""One `cortex up` per home: a file lock that dies with its holder and says who that is."""

import asyncio
import contextlib
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cortex_shared.errors import Conflict, CortexError

from cortex_cli.embedded.layout import disk_errors, read_json

_LOOK_SECONDS = 0.1
_BYTES = 128
_UNSIGNED_SECONDS = 1.0
"""A holder writes its name right after it took the lock; so long an unsigned lock is waited for."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock. `since` is a Unix time in seconds."""

    pid: int
    since: float
    draining: bool


class UpLock:
    """The lock of one home. It is released when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    async def acquire(self, *, drain_seconds: float = 60) -> Self:
        """Take the lock; wait up to `drain_seconds` for a holder that is shutting down.

        Raises Conflict (`embedded.already_up`, `embedded.still_draining`) naming the holder's pid.
        """
        started = time.monotonic()
        while not self._try():
            holder = read_holder(self._path)
            waited = time.monotonic() - started
            if holder is None and waited < _UNSIGNED_SECONDS:
                pass
            elif holder is None or not holder.draining:
                raise _already_up(holder)
            elif waited >= drain_seconds:
                raise Conflict(
                    f"Another `cortex up` (pid {holder.pid}) has been shutting down for "
                    f"more than {drain_seconds:.0f} s.",
                    code="embedded.still_draining",
                    remedy=f"Wait for it, or end it at once: kill -9 {holder.pid}.",
                )
            await asyncio.sleep(_LOOK_SECONDS)
        self._sign(draining=False)
        return self

    def draining(self) -> None:
        """Say that the holder is shutting down, so that the next `up` waits.

        Best effort: it is said from signal handlers, and a disk that is full must not keep us from stopping.
        """
        with contextlib.suppress(OSError, CortexError):
            self._sign(draining=True)

    def release(self) -> None:
        """Let the next one in."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def _try(self) -> bool:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        if not self._is_current(fd):  # `cortex reset` removed the file in between
            os.close(fd)
            return False
        self._fd = fd
        return True

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False

    def _sign(self, *, draining: bool) -> None:
        assert self._fd is not None, "the lock is not held"
        text = json.dumps({"pid": os.getpid(), "since": time.time(), "draining": draining})
        # In place: another file would be another lock. Of one length: what was written once can be written
        # over on a disk that has become full.
        with disk_errors(self._path):
            os.pwrite(self._fd, text.encode().ljust(_BYTES), 0)
            os.ftruncate(self._fd, _BYTES)


def read_holder(path: Path) -> Holder | None:
    """Who wrote the lock last; None when nobody did. It may have died since: see `is_held`."""
    found = read_json(path)
    pid, since = found.get("pid"), found.get("since")
    if not isinstance(pid, int) or not isinstance(since, float):
        return None
    return Holder(pid, since, found.get("draining") is True)


def is_held(path: Path) -> bool:
    """Whether an `up` runs in this home now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _already_up(holder: Holder | None) -> Conflict:
    who = f" (pid {holder.pid})" if holder else ""
    return Conflict(
        f"Another `cortex up`{who} runs in this home.",
        code="embedded.already_up",
        remedy="Use the one that runs (`cortex status`), stop it (`cortex down`), "
        "or set CORTEX_HOME to another folder for a second system.",
    )
