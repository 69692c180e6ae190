"""A whole system in a home of its own, run as a person would run it: by the `cortex` command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

UP_SECONDS = 90.0
DOWN_SECONDS = 60.0
_LOOK_SECONDS = 0.02


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Look every 20 ms; fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(_LOOK_SECONDS)


@dataclass
class System:
    """One home; `start` and `interrupt` are `cortex up` and Ctrl-C. Its commands see `variables` too."""

    home: Path
    ports: tuple[int, int] = field(default_factory=lambda: (free_port(), free_port()))
    process: subprocess.Popen[bytes] | None = None
    variables: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def output(self) -> str:
        """What `cortex up` has said."""
        path = self.home.with_name(f"{self.home.name}.out")
        return path.read_text() if path.exists() else ""

    @property
    def access(self) -> dict[str, str]:
        """The access file."""
        return cast("dict[str, str]", json.loads((self.home / "access.json").read_text()))

    def environment(self) -> dict[str, str]:
        """For a command in this home."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return kept | self.variables | {"CORTEX_HOME": str(self.home)}

    def cortex(
        self, *words: str, status: int | None = 0, seconds: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """Run `cortex WORDS`; its exit status must be `status` (None: any)."""
        done = subprocess.run(
            [sys.executable, "-m", "cortex_cli", *words],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert status is None or done.returncode == status, (
            f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def json(self, *words: str, status: int = 0) -> Any:
        """What `cortex WORDS --json` prints."""
        return json.loads(self.cortex(*words, "--json", status=status).stdout)

    def begin(self, *words: str) -> None:
        """Start `cortex up` and return at once."""
        gateway, api = self.ports
        with self.home.with_name(f"{self.home.name}.out").open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "cortex_cli",
                    "up",
                    f"--gateway-port={gateway}",
                    f"--api-port={api}",
                    *words,
                ],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self, *words: str) -> None:
        """`cortex up`, until it says that it is ready."""
        self.begin(*words)
        self.until_says("Cortex is ready")

    def until_says(self, words: str) -> None:
        """Until its output holds `words`."""

        def said() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"cortex up ended: {self.output}\n{self.logs()}"
            return words in self.output

        try:
            until(said, UP_SECONDS, f"{words!r} from cortex up")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}\n{self.logs()}") from None

    def interrupt(self) -> int:
        """Ctrl-C, and wait until it has ended; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(DOWN_SECONDS)

    def pid(self, part: str) -> int:
        """Pid of a child of the supervisor."""
        return int(json.loads((self.home / "run" / f"{part}.json").read_text())["pid"])

    def processes(self) -> dict[int, str]:
        """What runs in this home: pid → command line."""
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                folder = (entry / "cwd").readlink()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state not in "ZX" and (str(self.home) in words or folder.is_relative_to(self.home)):
                found[int(entry.name)] = words
        return found

    def until_nothing_runs(self) -> None:
        """Every process of this home has gone."""
        if self.process is not None:
            self.process.wait(DOWN_SECONDS)
        try:
            until(lambda: not self.processes(), DOWN_SECONDS, "nothing runs")
        except AssertionError:
            raise AssertionError(f"these still run: {self.processes()}\n{self.output}") from None

    def logs(self) -> str:
        """The ends of all logs, for a failure's report."""
        parts: list[str] = []
        for path in sorted((self.home / "logs").glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-12:]
            parts += [f"--- {path.name}", *lines]
        return "\n".join(parts)

    def until_state(self, model: str, state: str, seconds: float = 60) -> dict[str, Any]:
        """Until a model has a state; returns it."""
        shown: dict[str, Any] = {}

        def there() -> bool:
            nonlocal shown
            shown = self.json("models", "show", model)
            return shown["state"] == state

        try:
            until(there, seconds, f"{model} is {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {shown}\n{self.logs()}") from None
        return shown


@contextmanager
def system_in(folder: Path) -> Generator[System]:
    """A system that is not up yet; whatever happens, nothing of it is left afterwards."""
    system = System(folder / "home")
    try:
        yield system
    finally:
        if system.process is not None and system.process.poll() is None:
            system.process.send_signal(signal.SIGTERM)
            try:
                system.process.wait(DOWN_SECONDS)
            except subprocess.TimeoutExpired:
                system.process.kill()
        system.cortex("down", status=None)
        for pid in system.processes():
            os.kill(pid, signal.SIGKILL)
