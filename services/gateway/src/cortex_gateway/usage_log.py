"""UsageLog: finished usage records in files for people, JSON lines, where there is no bus to send them to.

`cat usage/*.jsonl` under the journal's folder is all that there is. Files are cut at a size, the oldest are
removed when all together pass the bound, and their records are counted as dropped. As with the journal, a
write is one system call, and what a killed process left open is counted by whoever starts next.
"""

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cortex_shared.logs import get_logger

from cortex_gateway.families import Family, counter
from cortex_gateway.journal import Journal, request_ids

_log = get_logger("usage_log")

FOLDER: Final = "usage"
_KIB: Final = 1024
_SEGMENT_BYTES = (64 * _KIB, 16 * _KIB * _KIB)
_LIVE: Final = ".live.jsonl"
_DONE: Final = ".jsonl"
_GOING: Final = ".going"


class UsageLog(Journal):
    """A journal whose segments stay. Used from one thread."""

    def __init__(self, folder: Path, process: str, *, max_bytes: int) -> None:
        """`process` is unique to this process's life. Raises OSError when the folder cannot be used."""
        least, most = _SEGMENT_BYTES
        self._segment_bytes = max(least, min(most, max_bytes // 8))
        self._bound = max_bytes
        self._usage = folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._usage.mkdir(exist_ok=True, mode=0o700)
        self._process = process
        self.dropped = 0
        super().__init__(folder, process, max_bytes=max_bytes)
        for left in self.left:
            for live in self._usage.glob(f"{left.name}-*{_LIVE}"):
                _done(live)
        self._trim()

    def families(self) -> Iterable[Family]:
        """What is shown at /metrics beside what every journal shows."""
        dropped = counter(
            "cortex_gateway_usage_dropped_records", "Usage records removed with the oldest files, for room."
        )
        dropped.add((), self.dropped)
        yield dropped

    @property
    def pending(self) -> bool:
        """Nothing here waits for anybody."""
        return False

    def append(self, record: bytes) -> bool:
        """Write one record (JSON without line ends). False, and one more lost, when that is impossible."""
        if self._written + len(record) >= self._segment_bytes:
            self._turn(0)
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

    def finished(self) -> set[bytes]:
        """Ids of the last requests that the ended processes finished: one may stand as open still."""
        found: set[bytes] = set()
        for left in self.left:
            for segment in sorted(self._usage.glob(f"{left.name}-*{_DONE}"))[-2:]:
                found |= request_ids(segment)
        return found

    def close(self) -> None:
        """End; the files stay."""
        path = self._path()
        if self._fd >= 0 and self._written:
            _done(path)
        super().close()

    def _path(self, number: int | None = None) -> Path:
        return self._usage / f"{self._process}-{self._number if number is None else number:06d}{_LIVE}"

    def _open(self, room: int = 0) -> None:
        # Written by system calls, not through a map: people read the file while it grows.
        path = self._path(self._number + 1)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number += 1
        self._written = 0

    def _turn(self, room: int) -> bool:
        before, fd = self._path(), self._fd
        try:
            self._open()
        except OSError as error:
            _log.warning("usage_log.no_new_file", error=str(error))
            return False
        os.close(fd)
        _done(before)
        # Beside the requests: it reads a whole file once in ten thousands of them.
        threading.Thread(target=self._trim, name="usage-log-trim", daemon=True).start()
        return True

    def _trim(self) -> None:
        files: list[tuple[int, Path, int]] = []
        for path in self._usage.iterdir():
            with contextlib.suppress(FileNotFoundError):
                seen = path.stat()
                files.append((seen.st_mtime_ns, path, seen.st_size))
        total = sum(size for _, _, size in files)
        for _, path, size in sorted(files):
            if total <= self._bound:
                return
            if not path.name.endswith(_LIVE):
                self._drop(path)
                total -= size

    def _drop(self, path: Path) -> None:
        # Renamed first: of several processes that trim at once only one counts a file.
        going = path.with_name(f"{path.name}{_GOING}")
        try:
            path.rename(going)
            records = going.read_bytes().count(b"\n")
            going.unlink()
        except FileNotFoundError:
            return
        self.dropped += records
        _log.warning("usage_log.dropped", records=records, file=path.name, max_bytes=self._bound)


def _done(live: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        live.rename(live.with_name(live.name.removesuffix(_LIVE) + _DONE))
