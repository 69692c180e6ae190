"""Journal: finished usage records in local files, one JSON document a line, until the bus has them.

A write is one system call into the page cache, so a record that was written survives kill -9 of the
process. A segment is sent as a whole and then removed; its name makes the ids of its batches, so that sending
it again after a crash repeats the same ids. Each process has a folder of its own, locked while it lives; a
process that starts takes over the folders that nobody holds any more.
"""

import fcntl
import os
from pathlib import Path

from cortex_shared.logs import get_logger

_log = get_logger("journal")

_LOCK = "lock"
_SUFFIX = ".usage"


def _lock(folder: Path) -> int | None:
    # The lock ends with the process, however that ends.
    try:
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None  # another user's, or removed at this moment by who took it over
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


class Journal:
    """The segments of one process, and those that ended processes left. Used from one thread."""

    def __init__(self, folder: Path, process: str, *, max_bytes: int) -> None:
        """`process` is unique to this process's life. Raises OSError when the folder cannot be used."""
        self.folder = folder / process
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _lock(self.folder)
        if lock is None:
            raise OSError(f"the journal's folder {self.folder} cannot be locked")
        self._locks: dict[Path, int] = {self.folder: lock}
        self._max_bytes = max_bytes
        self._number = 0
        self._fd = -1
        self._written = 0
        self._closed: dict[Path, int] = {}
        self._closed_bytes = 0
        self._complained = False
        self.lost = 0
        self.left = self._adopt(folder)
        self._open()

    @property
    def size_bytes(self) -> int:
        """What the segments take on disk."""
        return self._closed_bytes + self._written

    @property
    def pending(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._closed) or self._written > 0

    def append(self, record: bytes) -> bool:
        """Write one record (JSON without line ends). False, and one more lost, when that is impossible."""
        if self.size_bytes + len(record) >= self._max_bytes:
            return self._lose("it is full")
        try:
            written = os.write(self._fd, record + b"\n")
        except OSError as error:
            return self._lose(str(error))
        if written <= len(record):
            # The next record must not go on in the same line.
            os.ftruncate(self._fd, self._written)
            return self._lose("the disk is full")
        self._written += written
        self._complained = False
        return True

    def segments(self) -> list[Path]:
        """Close what was written and give all closed segments, oldest first."""
        if self._written:
            path, fd, written = self._path(), self._fd, self._written
            try:
                self._open()
            except OSError as error:
                # The old one stays in use. Closed first, its number would soon be a client's socket.
                _log.warning("journal.no_new_segment", error=str(error))
            else:
                os.close(fd)
                self._closed[path] = written
                self._closed_bytes += written
        return list(self._closed)

    def remove(self, segment: Path) -> None:
        """Forget a segment: the bus has it."""
        segment.unlink(missing_ok=True)
        self._closed_bytes -= self._closed.pop(segment, 0)
        self.tidy()

    def tidy(self) -> None:
        """Remove the folders of ended processes of which all is sent."""
        for folder, lock in list(self._locks.items()):
            if folder == self.folder or any(path.parent == folder for path in self._closed):
                continue
            for path in folder.iterdir():
                path.unlink(missing_ok=True)
            folder.rmdir()
            os.close(lock)
            del self._locks[folder]

    def close(self) -> None:
        """End. A folder with unsent segments stays for the next process."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if not self._written:
            self._path().unlink(missing_ok=True)
        if not self.pending:
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)
            self.folder.rmdir()
        for lock in self._locks.values():
            os.close(lock)
        self._locks.clear()

    def _path(self, number: int | None = None) -> Path:
        return self.folder / f"{self._number if number is None else number:08d}{_SUFFIX}"

    def _open(self) -> None:
        path = self._path(self._number + 1)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number += 1
        self._written = 0

    def _adopt(self, root: Path) -> list[Path]:
        left: list[Path] = []
        folders = [path for path in root.iterdir() if path.is_dir() and path != self.folder]
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime_ns):
            lock = _lock(folder)
            if lock is None:
                continue
            self._locks[folder] = lock
            left.append(folder)
            for segment in sorted(folder.glob(f"*{_SUFFIX}")):
                size = segment.stat().st_size
                if size:
                    self._closed[segment] = size
                    self._closed_bytes += size
        if left:
            _log.info("journal.adopted", processes=len(left), bytes=self._closed_bytes)
        return left

    def _lose(self, why: str) -> bool:
        self.lost += 1
        if not self._complained:
            self._complained = True
            _log.error("journal.record_lost", why=why, size_bytes=self.size_bytes, max_bytes=self._max_bytes)
        return False
