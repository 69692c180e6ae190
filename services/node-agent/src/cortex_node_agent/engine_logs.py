"""Reading what runners write: a log in files named by the offset of their first byte."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LINE_BYTES = 512  # a generous mean, to guess how far back so many lines begin
# An engine of several processes ends with a traceback of each, and the cause is in the first of them: with
# vLLM 0.32 that is 16 KiB before the end.
_LAST_WORDS_BYTES_MAX = 131_072
_LAST_LINE_CHARACTERS_MAX = 600
_FRAME = re.compile(r"File \"[^\"]*\", line \d+(?:, in .*)?$")
_TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Piece:
    """Part of a log; `next_offset` is where to go on, `end` the whole log's end when it was read."""

    text: str
    next_offset: int
    end: int


class EngineLog:
    """The log of one instance, over all its runs. Offsets never go back, whatever is rotated away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def end(self) -> int:
        """Offset after the last byte; 0 when there is no log."""
        files = self._files()
        return files[-1][0] + files[-1][2] if files else 0

    def read(self, offset: int, bytes_max: int) -> Piece:
        """Whole lines from `offset`, or from the oldest byte that is kept. A line that is longer than
        `bytes_max` comes in parts; the log's last line comes even if it is not finished.
        """
        files = self._files()
        end = files[-1][0] + files[-1][2] if files else 0
        begin = min(max(offset, files[0][0] if files else 0), end)
        data = self._bytes(files, begin, bytes_max)
        if begin + len(data) < end and (cut := data.rfind(b"\n") + 1):
            data = data[:cut]
        data = _whole_characters(data)
        return Piece(data.decode(errors="replace"), begin + len(data), end)

    def tail(self, lines: int, bytes_max: int, *, since: int = 0) -> Piece:
        """The last lines, only from offset `since` on."""
        files = self._files()
        end = files[-1][0] + files[-1][2] if files else 0
        begin = max(since, end - min(bytes_max, max(1, lines) * _LINE_BYTES), files[0][0] if files else 0)
        data = self._bytes(files, min(begin, end), bytes_max)
        if begin > since and begin > (files[0][0] if files else 0):
            data = data[data.find(b"\n") + 1 :]
        kept = data.splitlines(keepends=True)[-lines:] if lines else []
        return Piece(b"".join(kept).decode(errors="replace"), end, end)

    def last_words(self, lines: int, bytes_max: int, *, since: int) -> list[str]:
        """The last lines of a run that began at offset `since`, as they tell why it ended: no Python stack
        frames, no line twice, long lines cut. `bytes_max` is of all of them as UTF-8.
        """
        text = self.tail(_LAST_WORDS_BYTES_MAX, _LAST_WORDS_BYTES_MAX, since=since).text
        kept: list[str] = []
        room = bytes_max
        seen: set[str] = set()
        for line in reversed(list(without_frames(text.splitlines()))):
            short = line.rstrip()
            if len(short) > _LAST_LINE_CHARACTERS_MAX:
                short = f"{short[: _LAST_LINE_CHARACTERS_MAX - 1]}…"
            room -= len(short.encode()) + 1
            if room < 0 or len(kept) == lines:
                break
            if short and short not in seen:
                seen.add(short)
                kept.append(short)
        return kept[::-1]

    def _files(self) -> list[tuple[int, Path, int]]:
        found: list[tuple[int, Path, int]] = []
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._folder):
                base = entry.name.removesuffix(".log")
                if base != entry.name and base.isdigit():
                    with suppress(FileNotFoundError):
                        found.append((int(base), Path(entry.path), entry.stat().st_size))
        return sorted(found)

    def _bytes(self, files: list[tuple[int, Path, int]], begin: int, bytes_max: int) -> bytes:
        data = b""
        for base, path, size in files:
            at = begin + len(data)
            if base <= at < base + size and len(data) < bytes_max:
                try:
                    with path.open("rb") as file:
                        file.seek(at - base)
                        data += file.read(min(bytes_max - len(data), base + size - at))
                except FileNotFoundError:
                    break  # turned away between listing and reading
        return data


def without_frames(lines: Iterable[str]) -> Iterator[str]:
    """Lines without the stack frames of Python's tracebacks, prefixed by a logger or not."""
    column: int | None = None
    for line in lines:
        if frame := _FRAME.search(line):
            column = frame.start()
        elif (
            column is not None
            and len(line) > column + 1
            and not line[max(0, column - 2) : column + 2].strip()
        ):
            continue  # source under its frame, two deeper than `File`; an exception stands two less deep
        else:
            column = None
            if not line.endswith(_TRACEBACK):
                yield line


def _whole_characters(data: bytes) -> bytes:
    """Without the beginning of a UTF-8 character whose end has not been written yet."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return data
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data if back >= length else data[:-back]
    return data
