"""One child process: started in a session of its own, known by more than its pid, watched without polling."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cortex_shared.procfs import boot_id, is_same, start_ticks

from cortex_cli.embedded import launch
from cortex_cli.embedded.layout import read_json, write_json

_LOOK_SECONDS = 0.02
_RECORDED = ("pid", "start_ticks", "stop_signal", "stop_seconds")
_KILLED_SECONDS = 5.0
"""So long a process may take to vanish after SIGKILL (it may sit in a slow disk call)."""


class Process:
    """A running child. Make it with `start`, from the main thread: its end is tied to that thread's."""

    def __init__(self, child: subprocess.Popen[bytes], on_exit: Callable[[], None]) -> None:
        self._child = child
        self._on_exit = on_exit
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        try:
            self._pidfd = os.pidfd_open(child.pid)
        except OSError:  # Linux before 5.3: a thread waits, as asyncio itself does there
            self._pidfd = None
            threading.Thread(target=self._wait_in_thread, name=f"wait for {child.pid}", daemon=True).start()
        else:
            self._loop.add_reader(self._pidfd, self._exited)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: int,
        record: Path,
        stop_signal: signal.Signals,
        stop_seconds: float,
        identity: str,
        on_exit: Callable[[], None],
    ) -> Self:
        """Start `argv` with exactly `env`, output to the descriptor `log`, and write down who it is.

        The kernel sends it `stop_signal` when this process ends in whatever way. Raises OSError.
        """
        child = subprocess.Popen(
            [*launcher(stop_signal, identity), *argv],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            who = (child.pid, start_ticks(child.pid), int(stop_signal), stop_seconds)
            content = dict(zip(_RECORDED, who, strict=True)) | {"boot_id": boot_id()}
            write_json(record, content, durable=False)
            return cls(child, on_exit)
        except BaseException:
            # Unwatched it would hold its port and its data against the next one.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise

    @property
    def pid(self) -> int:
        """The child's pid, which is also its process group and session."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal's number if one ended it."""
        return self._child.returncode

    def send(self, number: signal.Signals) -> None:
        """Signal the child itself."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)  # not reaped yet, so the number is still the child's

    async def wait(self, seconds: float) -> bool:
        """Whether it ended within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        except TimeoutError:
            return False
        return True

    async def end(self, stop_signal: signal.Signals, seconds: float) -> None:
        """Ask it to stop; kill its whole group when it has not within `seconds`."""
        self.send(stop_signal)
        if not await self.wait(seconds):
            self.kill()
            await self.wait(_KILLED_SECONDS)

    def kill(self) -> None:
        """Kill the child and whatever it left in its group."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _wait_in_thread(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self._exited)

    def _exited(self) -> None:
        # Before the child is reaped: until then no other group can have its number.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._gone.set()
        self._on_exit()


def launcher(stop_signal: signal.Signals, identity: str) -> list[str]:
    """The words before a command that tie it to this process and change its identity (see `launch`)."""
    words = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), str(int(stop_signal)), identity]
    return words


@dataclass(frozen=True, slots=True)
class Orphan:
    """A child of an earlier supervisor that still runs."""

    pid: int
    ticks: int
    stop_signal: signal.Signals
    stop_seconds: float

    @property
    def lives(self) -> bool:
        """Pid and start time together: a stranger with a recycled pid is none of ours."""
        return is_same(self.pid, self.ticks)


async def end_orphans(run: Path) -> list[int]:
    """End what the records in the folder `run` say an earlier supervisor left running; returns their pids.

    To be called under the home's lock, before ports are chosen (an orphan still holds its own). An
    orphan gets its stop signal and its time, and is then killed with its group.
    """
    orphans = _orphans(run)
    for orphan in orphans:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan.pid, orphan.stop_signal)
    for orphan in orphans:
        if not await gone(lambda orphan=orphan: not orphan.lives, orphan.stop_seconds):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(orphan.pid, signal.SIGKILL)
            await gone(lambda orphan=orphan: not orphan.lives, _KILLED_SECONDS)
    return [orphan.pid for orphan in orphans]


def _orphans(run: Path) -> list[Orphan]:
    return [found for record in sorted(run.glob("*.json")) if (found := _orphan(record)) is not None]


def _orphan(record: Path) -> Orphan | None:
    found = read_json(record)
    if found.get("boot_id") != boot_id():
        return None
    pid, ticks, number, seconds = (found.get(key) for key in _RECORDED)
    if not (isinstance(pid, int) and isinstance(ticks, int) and isinstance(number, int)):
        return None
    patience = seconds if isinstance(seconds, int | float) else 0
    orphan = Orphan(pid, ticks, signal.Signals(number), patience)
    return orphan if orphan.lives else None


async def gone(condition: Callable[[], bool], seconds: float) -> bool:
    """Look every 20 ms, for at most `seconds`, until the condition holds. For what is no child of ours."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(_LOOK_SECONDS)
    return True
