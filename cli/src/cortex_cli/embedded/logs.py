"""The children's log files: appended to by the child itself, cut and kept bounded by the supervisor.

A child writes straight to its file (O_APPEND), so that it depends on no pipe and no reader, and its last
words survive the supervisor's death. The price: cutting is copy-then-truncate, and what a child writes in
the microseconds between the two is lost.
"""

import os
from pathlib import Path

FILE_BYTES_MAX = 4 * 2**20
FILES_KEPT_MAX = 2
TAIL_BYTES_MAX = 16 * 2**10


def open_log(path: Path) -> int:
    """A descriptor that appends to the log, 0600."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def size(path: Path) -> int:
    """Bytes in the log now; 0 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def rotate(path: Path, *, file_bytes_max: int = FILE_BYTES_MAX, files_kept_max: int = FILES_KEPT_MAX) -> bool:
    """Move a log that is too long to `NAME.1` (its newest part only), `NAME.1` to `NAME.2`, and empty it.

    Returns whether it did. A disk that is too full to keep the copy costs the copy, not the truncation.
    """
    if size(path) <= file_bytes_max:
        return False
    kept = [path.with_name(f"{path.name}.{number}") for number in range(1, files_kept_max + 1)]
    for older, newer in zip(reversed(kept), reversed([path, *kept[:-1]]), strict=True):
        if newer is not path and newer.exists():
            newer.replace(older)
    try:
        _copy_end(path, kept[0], file_bytes_max)
    except OSError:
        kept[0].unlink(missing_ok=True)
    os.truncate(path, 0)
    return True


def _copy_end(source: Path, target: Path, bytes_max: int) -> None:
    with (
        open(source, "rb") as reading,
        open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as writing,
    ):
        end = os.fstat(reading.fileno()).st_size
        offset = max(0, end - bytes_max)
        while offset < end:
            sent = os.sendfile(writing.fileno(), reading.fileno(), offset, end - offset)
            if sent == 0:
                return  # somebody emptied the log meanwhile
            offset += sent


def tail(path: Path, *, lines_max: int = 20, start: int = 0) -> list[str]:
    """The last lines of the log, only those after byte `start`; none when it cannot be read."""
    try:
        with open(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size
            file.seek(max(end - TAIL_BYTES_MAX, start if start <= end else 0))
            text = file.read(TAIL_BYTES_MAX)
    except OSError:
        return []
    return text.decode(errors="replace").splitlines()[-lines_max:]
