"""OpenRequests: a memory-mapped table of requests that are going on, readable after kill -9.

Rows have a fixed size: two bytes of length (0: free), then a JSON document. A row is written body first and
length last, so that a process killed in between leaves a free row.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NAME: Final = "open.table"
_ROW: Final = 1024
_FREE: Final = b"\0\0"

RECORD_MAX: Final = _ROW - 2
"""Bytes of the longest record that a row holds."""


class OpenRequests:
    """The table of one process. Used from one thread."""

    def __init__(self, folder: Path, *, rows_max: int) -> None:
        """Create the table in `folder`. Raises OSError."""
        self._path = folder / NAME
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Allocated, since writing a hole of a full disk through a map kills the process (SIGBUS).
            os.posix_fallocate(fd, 0, rows_max * _ROW)
            self._map = mmap.mmap(fd, rows_max * _ROW)
        finally:
            os.close(fd)
        self._free = list(range(rows_max - 1, -1, -1))

    def begin(self, record: bytes) -> int:
        """Note a request; returns its row, -1 when the table is full or the record too long for it."""
        if not self._free or len(record) > RECORD_MAX:
            return -1
        row = self._free.pop()
        at = row * _ROW
        self._map[at + 2 : at + 2 + len(record)] = record
        self._map[at : at + 2] = len(record).to_bytes(2, "little")
        return row

    def end(self, row: int) -> None:
        """The request of that row is over; -1 is passed over."""
        if row >= 0:
            self._map[row * _ROW : row * _ROW + 2] = _FREE
            self._free.append(row)

    def close(self) -> None:
        """Release the map; the file stays."""
        self._map.close()


def left_open(folder: Path) -> Iterator[bytes]:
    """The records in the table that an ended process left in `folder`."""
    path = folder / NAME
    if not path.exists():
        return
    data = path.read_bytes()
    for at in range(0, len(data) - 1, _ROW):
        length = int.from_bytes(data[at : at + 2], "little")
        if 0 < length <= _ROW - 2:
            yield data[at + 2 : at + 2 + length]
