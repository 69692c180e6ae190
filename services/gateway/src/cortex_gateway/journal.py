"""Journal: finished usage records in local files, one JSON document a line, until they are counted.

Segments are memory-mapped: a record that was written is in the page cache and survives kill -9 of the
process, for a fifth of what a system call costs. A segment is sent as a whole, and removed when the bus no
longer has it because it was counted; until then it can be sent again to a bus that lost it. Its name makes
the ids of its batches, so that sending it again repeats the same ids. Each process has a folder of its own,
locked while it lives; a process that starts takes over the folders that nobody holds any more.
"""

import fcntl
import mmap
import os
from pathlib import Path
from typing import Final

from cortex_shared.logs import get_logger

_log = get_logger("journal")

_LOCK: Final = "lock"
_SUFFIX: Final = ".usage"
_SEGMENT_BYTES: Final = 1024 * 1024
# Sent segments that wait to be counted, a file each: more than half an hour of them.
_SENT_MAX: Final = 4096
# Closed segments whose files are still open, until another thread has the time.
_TURNED_MAX: Final = 8


def own_folder(folder: Path) -> int:
    """Make a process's folder and lock it; the lock ends with the process, however that ends. Raises OSError.

    The lock appears locked: a sibling that starts at the same moment must not take the folder over.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = folder / f".{_LOCK}"
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / _LOCK)
    except OSError:
        os.close(fd)
        raise
    return fd


def _finish(fd: int, mapped: mmap.mmap, written: int) -> None:
    mapped.close()
    os.ftruncate(fd, written)
    os.close(fd)


def _lock_left(folder: Path) -> int | None:
    # None: held, or another user's, or removed at this moment by who took it over.
    path = folder / _LOCK
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(fd).st_ino:
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def adopt(root: Path, own: Path) -> dict[Path, int]:
    """Lock the folders of processes that ended, oldest first."""
    found: dict[Path, int] = {}
    for folder in root.iterdir():
        if folder != own and folder.is_dir():
            lock = _lock_left(folder)
            if lock is not None:
                found[folder] = lock
    return {folder: found[folder] for folder in sorted(found, key=lambda folder: folder.stat().st_mtime_ns)}


def request_ids(segment: Path) -> set[bytes]:
    """The ids of the records in a segment: of those that are whole."""
    start = b'{"request_id":"'
    try:
        lines = segment.read_bytes().split(b"\n")[:-1]
    except OSError:
        return set()
    return {line[len(start) : line.find(b'"', len(start))] for line in lines if line.startswith(start)}


class Journal:
    """The segments of one process, and those that ended processes left. Used from one thread, but for
    `read`.
    """

    def __init__(self, folder: Path, process: str, *, max_bytes: int) -> None:
        """`process` is unique to this process's life. Raises OSError when the folder cannot be used."""
        self.folder = folder / process
        self._locks: dict[Path, int] = {self.folder: own_folder(self.folder)}
        self._max_bytes = max_bytes
        self._number = 0
        self._fd = -1
        self._map = mmap.mmap(-1, 1)
        self._room = 0
        self._written = 0
        self._turned: list[tuple[int, mmap.mmap, int]] = []
        self._closed: dict[Path, int] = {}
        self._closed_bytes = 0
        # Of closed ones: the last sequence under which the bus has it, 0 when it is to be sent again.
        self._sent: dict[Path, int] = {}
        self._sent_bytes = 0
        self._complained = False
        self.lost = 0
        self.left = self._adopt(folder)
        self._open()

    @property
    def size_bytes(self) -> int:
        """What is to be sent."""
        return self._closed_bytes - self._sent_bytes + self._written

    @property
    def uncounted_bytes(self) -> int:
        """What was sent, and perhaps not counted yet."""
        return self._sent_bytes

    @property
    def pending(self) -> bool:
        """Whether there is anything to send."""
        return self.size_bytes > 0

    def append(self, record: bytes) -> bool:
        """Write one record (JSON without line ends). False, and one more lost, when that is impossible."""
        begin = self._written
        end = begin + len(record) + 1
        if self._closed_bytes + end > self._max_bytes:
            self._make_room(end)
            if self._closed_bytes + end > self._max_bytes:
                return self._lose("it is full")
        if end > self._room:
            if not self._turn(len(record) + 1):
                return self._lose("the disk is full")
            begin, end = 0, len(record) + 1
        self._map[begin:end] = record + b"\n"
        self._written = end
        self._complained = False
        return True

    def segments(self) -> list[Path]:
        """Close what was written and give all closed segments that are to be sent, oldest first."""
        if self._written:
            self._turn(0)
        return [segment for segment in self._closed if not self._sent.get(segment)]

    def read(self, segment: Path) -> bytes:
        """What a closed segment holds, and perhaps zeros after it. Raises FileNotFoundError.

        May run in another thread: it also cuts and closes the files of segments that were closed since, which
        takes half a millisecond for each.
        """
        self._finish_turned()
        return segment.read_bytes()

    def is_new(self, segment: Path) -> bool:
        """Whether the bus has never had it."""
        return segment not in self._sent

    def sent(self, segment: Path, sequence: int) -> None:
        """The bus has all of it, the last under this sequence (1 or more): it stays until it is counted."""
        if segment not in self._closed:
            return
        if not self._sent.get(segment):
            self._sent_bytes += self._closed[segment]
        self._sent[segment] = sequence
        if len(self._sent) > _SENT_MAX:
            self._let_go()

    def counted(self, before: int) -> bool:
        """All before this sequence is counted: remove it. Whether there was anything."""
        done = [segment for segment, sequence in self._sent.items() if 0 < sequence < before]
        for segment in done:
            self._forget(segment)
        if done:
            self.tidy()
        return bool(done)

    def again(self) -> bool:
        """The bus may have lost what it had: all of it is to be sent again. Whether there is anything."""
        for segment in self._sent:
            self._sent[segment] = 0
        self._sent_bytes = 0
        return bool(self._sent)

    def _finish_turned(self) -> None:
        while self._turned:
            try:
                fd, mapped, written = self._turned.pop()
            except IndexError:
                return  # the other thread has it
            _finish(fd, mapped, written)

    def _make_room(self, size: int) -> None:
        while self._closed_bytes + size > self._max_bytes and self._let_go():
            pass

    def _let_go(self) -> bool:
        # Of the oldest that the bus has: no loss as long as it keeps that.
        for segment, sequence in self._sent.items():
            if sequence:
                self._forget(segment)
                return True
        return False

    def _turn(self, room: int) -> bool:
        # To the next segment; False: there is none, and the old one stays in use.
        path, fd, written, old = self._path(), self._fd, self._written, self._map
        try:
            self._open_somehow(room)
        except OSError as error:
            _log.warning("journal.no_new_segment", error=str(error))
            return False
        self._turned.append((fd, old, written))
        if len(self._turned) > _TURNED_MAX:
            self._finish_turned()
        if written:
            self._closed[path] = written
            self._closed_bytes += written
        else:
            path.unlink(missing_ok=True)
        return True

    def _open_somehow(self, room: int) -> None:
        try:
            self._open(room)
        except OSError:
            if not self._turned:
                raise
            self._finish_turned()  # which gives room back
            self._open(room)

    def remove(self, segment: Path) -> None:
        """Forget a segment: nothing of it is needed any more."""
        self._forget(segment)
        self.tidy()

    def _forget(self, segment: Path) -> None:
        segment.unlink(missing_ok=True)
        size = self._closed.pop(segment, 0)
        self._closed_bytes -= size
        if self._sent.pop(segment, 0):
            self._sent_bytes -= size

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
        """End. A folder with segments that are not counted stays for the next process."""
        if self._fd < 0:
            return
        self._finish_turned()
        _finish(self._fd, self._map, self._written)
        self._fd = -1
        if not self._written:
            self._path().unlink(missing_ok=True)
        if not self.pending and not self._sent:
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)
            self.folder.rmdir()
        for lock in self._locks.values():
            os.close(lock)
        self._locks.clear()

    def _path(self, number: int | None = None) -> Path:
        return self.folder / f"{self._number if number is None else number:08d}{_SUFFIX}"

    def _open(self, room: int = 0) -> None:
        room = max(room, min(_SEGMENT_BYTES, self._max_bytes))
        path = self._path(self._number + 1)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # Allocated, since writing a hole of a full disk through a map kills the process (SIGBUS).
            os.posix_fallocate(fd, 0, room)
            self._map = mmap.mmap(fd, room)
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self._fd = fd
        self._room = room
        self._number += 1
        self._written = 0

    def finished(self) -> set[bytes]:
        """Ids of the last requests that the ended processes finished: one may stand as open still."""
        found: set[bytes] = set()
        for folder in self.left:
            for segment in sorted(folder.glob(f"*{_SUFFIX}"))[-2:]:
                found |= request_ids(segment)
        return found

    def _adopt(self, root: Path) -> list[Path]:
        left = adopt(root, self.folder)
        for folder, lock in left.items():
            self._locks[folder] = lock
            for segment in sorted(folder.glob(f"*{_SUFFIX}")):
                # Of one that was in use, the rest is zeros.
                size = len(segment.read_bytes().rstrip(b"\0"))
                if size:
                    self._closed[segment] = size
                    self._closed_bytes += size
        if left:
            _log.info("journal.adopted", processes=len(left), bytes=self._closed_bytes)
        return list(left)

    def _lose(self, why: str) -> bool:
        self.lost += 1
        if not self._complained:
            self._complained = True
            _log.error("journal.record_lost", why=why, size_bytes=self.size_bytes, max_bytes=self._max_bytes)
        return False
