"""What the supervisor is told about a child, and what it tells about one."""

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM, Signals


async def nothing() -> None:
    """The preparation of a child that needs none."""


async def always() -> bool:
    """The readiness of a child that is ready once it runs."""
    return True


async def healthy() -> str:
    """The check of a child that is well as long as it runs."""
    return ""


@dataclass(frozen=True, slots=True)
class Child:
    """What to run and how. `env` is the whole environment (nothing is inherited); secrets belong there,
    never in `argv`.

    `prepare` runs before every start, restarts included, and may raise OSError or CortexError; `ready` is
    asked until it says True (OSError counts as no); `after` names the children that must be ready first
    and are stopped later; `identity` as in `launch`. Times in seconds; `start_seconds` counts from the
    beginning of the preparation. `check` is asked every few seconds while the child is ready, and must be
    cheap: a sentence that it returns is why the child must be restarted.
    """

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path
    ready: Callable[[], Awaitable[bool]] = always
    prepare: Callable[[], Awaitable[None]] = nothing
    check: Callable[[], Awaitable[str]] = healthy
    stop_signal: Signals = SIGTERM
    stop_seconds: float = 10.0
    start_seconds: float = 60.0
    after: tuple[str, ...] = ()
    identity: str = "same"


class Happening(enum.StrEnum):
    """What an event tells."""

    started = enum.auto()
    ready = enum.auto()
    died = enum.auto()
    restarted = enum.auto()
    stopped = enum.auto()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a child.

    `seconds`: how long it took (ready, restarted, stopped), or had lived (died). `restarted` is told in
    place of `ready` when the child had been up before. `detail` says why it died, in plain words.
    """

    happening: Happening
    name: str
    pid: int | None
    seconds: float = 0.0
    detail: str = ""


Listener = Callable[[Event], None]
