"""The state folder: what this host was told, in files that survive the agent, the bus and a power cut."""

import os
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from cortex_shared.contracts.commands import Start
from cortex_shared.errors import InvalidInput
from cortex_shared.logs import get_logger
from pydantic import BaseModel, Field, ValidationError

_log = get_logger("store")


class Desired(BaseModel, frozen=True):
    """What is wanted of one instance. `generation` is that of the newest command applied to it.

    `start` is the newest Start, also after a Stop; `port` is the port that it was last given here.
    """

    start: Start
    generation: int
    wish: Literal["run", "stop", "remove"] = "run"
    reason: str = ""
    drain_seconds: float | None = None
    port: int | None = None


class FleetMemory(BaseModel, frozen=True):
    """Of each fleet the newest manifest epoch seen; and generations of instances that were removed."""

    epochs: dict[str, int] = Field(default_factory=dict[str, int])
    removed: dict[str, int] = Field(default_factory=dict[str, int])


class ReadyMark(BaseModel, frozen=True):
    """That a run was ready, for an agent that finds it again while it is too busy to answer a probe."""

    run: str
    at: datetime


class Secrets(BaseModel, frozen=True):
    """Values of an instance's secrets, by name."""

    values: dict[str, str] = Field(default_factory=dict[str, str], repr=False)


class StateFolder:
    """Paths and files under one folder, mode 0700. Files are read at start and written from then on."""

    def __init__(self, path: Path) -> None:
        """Creates the folder; raises InvalidInput when that cannot be."""
        self.path = path
        try:
            for folder in (path, path / "instances", path / "logs"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"the state folder {path} cannot be made: {error.strerror}",
                code="agent.state_folder",
                field="state",
                remedy="pass --state with a folder that this user may write to",
            ) from error

    def instances(self) -> list[str]:
        """Ids of all instances that have a folder."""
        return sorted(entry.name for entry in (self.path / "instances").iterdir() if entry.is_dir())

    def instance(self, instance: str) -> Path:
        """Folder of an instance's state."""
        return self.path / "instances" / instance

    def log(self, instance: str) -> Path:
        """Folder of an instance's log files."""
        return self.path / "logs" / instance

    def record(self, instance: str) -> Path:
        """The file in which the runner says who runs and how it ended."""
        return self.instance(instance) / "run.json"

    def load_desired(self, instance: str) -> Desired | None:
        """None when there is none, or it cannot be read."""
        return _load(self.instance(instance) / "desired.json", Desired)

    def save_desired(self, desired: Desired) -> None:
        """Raises OSError."""
        folder = self.instance(desired.start.instance)
        folder.mkdir(mode=0o700, exist_ok=True)
        replace(folder / "desired.json", desired.model_dump_json(), durable=True)

    def load_memory(self) -> FleetMemory:
        """Empty when there is none."""
        return _load(self.path / "fleets.json", FleetMemory) or FleetMemory()

    def save_memory(self, memory: FleetMemory) -> None:
        """Raises OSError."""
        replace(self.path / "fleets.json", memory.model_dump_json(), durable=True)

    def load_ready(self, instance: str) -> ReadyMark | None:
        """None when there is none."""
        return _load(self.instance(instance) / "ready.json", ReadyMark)

    def save_ready(self, instance: str, mark: ReadyMark) -> None:
        """Best effort: without it a busy engine counts as loading until it answers."""
        with suppress(OSError):
            replace(self.instance(instance) / "ready.json", mark.model_dump_json(), durable=False)

    def load_secrets(self, instance: str) -> dict[str, str]:
        """Secrets kept for an instance; empty when there are none."""
        found = _load(self.instance(instance) / "secrets.json", Secrets)
        return found.values if found else {}

    def save_secrets(self, instance: str, values: dict[str, str]) -> None:
        """Mode 0600, as all files here. Best effort: without it a restart has to ask the API again."""
        with suppress(OSError):
            self.instance(instance).mkdir(mode=0o700, exist_ok=True)
            text = Secrets(values=values).model_dump_json()
            replace(self.instance(instance) / "secrets.json", text, durable=False)

    def remove(self, instance: str) -> None:
        """Drop all state of an instance but its log."""
        shutil.rmtree(self.instance(instance), ignore_errors=True)

    def sweep_logs(self, known: set[str], *, older_than: float) -> None:
        """Remove logs of instances that are not known, last written before the Unix time `older_than`."""
        with suppress(OSError):
            for folder in (self.path / "logs").iterdir():
                if folder.name not in known and _last_written(folder) < older_than:
                    shutil.rmtree(folder, ignore_errors=True)


def _last_written(folder: Path) -> float:
    return max([folder.stat().st_mtime, *(file.stat().st_mtime for file in folder.iterdir())])


def replace(path: Path, text: str, *, durable: bool) -> None:
    """Write a file of mode 0600 in one step; `durable`: it survives a power cut. Raises OSError."""
    fresh = path.with_name(f"{path.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(fd)
        fresh.rename(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _load[M: BaseModel](path: Path, model: type[M]) -> M | None:
    try:
        return model.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        _log.warning("state.unreadable", file=str(path), error=type(error).__name__)
        return None
