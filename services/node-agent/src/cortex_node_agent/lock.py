"""One agent for each state folder: a lock that dies with its holder and says who that is."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from cortex_shared.errors import Conflict, InvalidInput


class StateLock:
    """Held from `take` until the process ends or `release`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "agent.lock"
        self._fd: int | None = None

    def take(self) -> None:
        """Raises Conflict (`agent.already_runs`) naming the holder's pid.

        InvalidInput (`agent.state_folder`): the folder cannot be written.
        """
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidInput(
                f"the state folder cannot be written: {self._path}: {error.strerror}",
                code="agent.state_folder",
                field="state",
                remedy="let the agent's user write to it, make room on its disk, or pass another --state",
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise Conflict(
                f"another agent (pid {holder}) uses the state folder {self._path.parent}",
                code="agent.already_runs",
                field="state",
                remedy="stop that agent first, or give this one a state folder of its own (--state)",
            ) from None
        self._fd = fd
        with suppress(OSError):  # on a full disk the lock holds, too; it only has no name
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another one in."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
