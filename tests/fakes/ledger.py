"""What a mock engine has sent, request by request, in a file that outlives the engine's being killed.

A sparse file of rows of fixed size, mapped into memory: what was written before a SIGKILL is there after it.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROWS_MAX = 1_000_000
_ID_BYTES = 64
_UNSAID = -1
# Request id, prompt tokens, events sent so far, completion tokens as said at the end or -1.
_ROW = struct.Struct(f"<{_ID_BYTES}sqqq")
_SENT = struct.Struct("<q")
_SENT_AT, _SAID_AT = _ID_BYTES + 8, _ID_BYTES + 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt of a request on one engine. `said`: completion tokens of its usage, None before that."""

    request_id: str
    prompt: int
    sent: int
    said: int | None


class Ledger:
    """Rows of one engine process."""

    def __init__(self, file: Path) -> None:
        with file.open("w+b") as opened:
            opened.truncate(ROWS_MAX * _ROW.size)
            self._map = mmap.mmap(opened.fileno(), 0)
        self._rows = 0

    def begin(self, request_id: bytes, prompt: int) -> int:
        """A request came; returns its row. Raises OverflowError when the file is full."""
        if self._rows >= ROWS_MAX:
            raise OverflowError(f"more than {ROWS_MAX} requests")
        row, self._rows = self._rows, self._rows + 1
        _ROW.pack_into(self._map, row * _ROW.size, request_id[:_ID_BYTES], prompt, 0, _UNSAID)
        return row

    def sent(self, row: int, events: int) -> None:
        """So many events of it have been written, or are about to be."""
        _SENT.pack_into(self._map, row * _ROW.size + _SENT_AT, events)

    def said(self, row: int, completion: int) -> None:
        """Its usage has been written, or is about to be."""
        _SENT.pack_into(self._map, row * _ROW.size + _SAID_AT, completion)

    @classmethod
    def read(cls, file: Path) -> list[Entry]:
        """All rows of a file, in order."""
        entries: list[Entry] = []
        with file.open("rb") as opened:
            while len(data := opened.read(_ROW.size)) == _ROW.size:
                name, prompt, sent, said = _ROW.unpack(data)
                if not name.rstrip(b"\0"):
                    break
                told = None if said == _UNSAID else said
                entries.append(Entry(name.rstrip(b"\0").decode("latin-1"), prompt, sent, told))
        return entries

    def close(self) -> None:
        """Unmap it."""
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
