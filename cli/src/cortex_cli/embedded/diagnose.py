"""Why a child did not come up, in plain words, from its last log lines."""

from collections.abc import Sequence
from pathlib import Path

from cortex_shared.errors import Conflict, CortexError, Forbidden, Unavailable

PORT_TAKEN = "embedded.port_taken"
_DISK_FULL = ("no space left on device", "disk quota exceeded")
_PORT_TAKEN = ("address already in use",)
_FORBIDDEN = ("permission denied", "operation not permitted")
_NO_MEMORY = ("cannot allocate memory", "could not create shared memory", "out of memory")
_QUOTED_LINES_MAX = 8


def start_failure(name: str, reason: str, words: Sequence[str], log: Path) -> CortexError:
    """The error of a child that kept dying while it was to start. `words` are its last log lines."""
    said = "\n".join(words)
    text = f"{reason}\n{said}".lower()
    quote = "".join(f"\n  {line[:300]}" for line in words[-_QUOTED_LINES_MAX:])
    if any(sign in text for sign in _DISK_FULL):
        return Unavailable(
            f"{name} cannot start: the disk is full.{quote}",
            code="embedded.disk_full",
            remedy=f"Free some space on the disk that holds {log.parent.parent}, then start again.",
        )
    if any(sign in text for sign in _PORT_TAKEN):
        return Conflict(
            f"{name} cannot start: its port is taken by another program.{quote}",
            code=PORT_TAKEN,
            field="port",
            remedy="Stop the other program, or choose another port.",
        )
    if any(sign in text for sign in _NO_MEMORY):
        return Unavailable(
            f"{name} cannot start: the machine has no memory left for it.{quote}",
            code="embedded.no_memory",
            remedy="Free some memory (in a container: also give it a larger /dev/shm), then start again.",
        )
    if any(sign in text for sign in _FORBIDDEN):
        return Forbidden(
            f"{name} cannot start: this user may not do what it needs.{quote}",
            code="embedded.not_permitted",
            remedy=f"See {log} for what was refused; the folder must belong to the user who runs Cortex.",
        )
    return Unavailable(
        f"{name} cannot start: {reason}.{quote}",
        code="embedded.start_failed",
        remedy=f"See {log} for all that it said.",
    )
