"""Runtime: what runs engines on this host. Runs outlive the agent and are found again by identity."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from cortex_shared.contracts.commands import Start


@dataclass(frozen=True)
class Orders:
    """Everything filled in: what to run for a Start. `env` holds secrets and is shown nowhere."""

    start: Start
    argv: tuple[str, ...]
    env: Mapping[str, str]
    port: int
    restarts: int

    def __repr__(self) -> str:
        return f"Orders({self.start.instance}, generation {self.start.generation})"


@dataclass(frozen=True)
class Ended:
    """How a run ended. Neither status nor signal: nobody was there to see it.

    `asked`: it was told to stop. `watched`: its runner saw the end; False: the runner itself was killed.
    """

    at: datetime
    status: int | None = None
    signal: int | None = None
    asked: bool = False
    watched: bool = True
    oom_killed: bool = False


@dataclass(frozen=True)
class Usage:
    """What all processes of a run use: CPU seconds since they began, resident memory in MiB."""

    cpu_seconds: float
    memory_mib: float


class Run(Protocol):
    """One life of an engine, from its start to its end; `start` is what it was started with."""

    @property
    def id(self) -> str:
        """Random; no two runs share it."""
        ...

    @property
    def start(self) -> Start: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def port(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def log_start(self) -> int:
        """Offset in the instance's whole log at which this run begins."""
        ...

    async def wait(self) -> Ended:
        """Until it has ended and nothing of it is left. May be called again."""
        ...

    async def stop(self) -> None:
        """Ask it to end: its plan's grace, then force. Returns when it has ended."""
        ...

    async def kill(self) -> None:
        """End it at once, with everything that belongs to it. Returns when it has ended."""
        ...

    def age_seconds(self) -> float:
        """How long ago it was started, whatever has been done to the clock since."""
        ...

    def usage(self) -> Usage | None:
        """What it uses now; None when that cannot be known."""
        ...


class Runtime(Protocol):
    """Starts runs and finds them again. Docker is to fit here, too."""

    kind: Literal["process", "docker"]

    async def start(self, orders: Orders) -> Run:
        """Run it. Raises Unavailable (`not_started`, `disk_full`, ...) or NotFound (`no_program`)."""
        ...

    async def find(self, instance: str) -> Run | Ended | None:
        """The instance's run as an earlier agent left it: alive, ended (what it left is killed), or none."""
        ...
