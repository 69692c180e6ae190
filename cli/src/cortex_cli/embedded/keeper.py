"""Keeps one child alive: the only code that prepares, starts, watches and stops it."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cortex_shared.errors import Conflict, CortexError

from cortex_cli.embedded import logs
from cortex_cli.embedded.child import Child, Event, Happening, Listener
from cortex_cli.embedded.diagnose import start_failure
from cortex_cli.embedded.layout import Home
from cortex_cli.embedded.process import Process

START_ATTEMPTS_MAX = 3
BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 10.0
HEALTHY_SECONDS = 30.0
_PROBE_PAUSE_SECONDS = 0.015
"""Between readiness probes, only while something starts."""
_PROBE_SECONDS_MAX = 1.0


@dataclass(slots=True)
class _Restart:
    while_down: Callable[[], Awaitable[None]]
    done: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None


class Keeper:
    """One child's task (`keep`) and the orders that it takes (`halt`, `restart`)."""

    def __init__(self, home: Home, child: Child, tell: Listener, changed: asyncio.Event) -> None:
        self.child = child
        self.failure: CortexError | None = None
        self.ready = asyncio.Event()
        self.stopped = asyncio.Event()
        self.process: Process | None = None
        self.needs: list[Keeper] = []
        self.needed_by: list[Keeper] = []
        self._home = home
        self._log = home.log(child.name)
        self._log_start = 0
        self._tell = tell
        self._changed = changed
        self._wake = asyncio.Event()
        self._halt = False
        self._order: _Restart | None = None
        self._illness = ""
        self._was_ready = False
        self._preparing: asyncio.Timeout | None = None

    def halt(self) -> None:
        """Stop the child once those that need it have stopped, and end the task."""
        self._halt = True
        self._wake.set()
        if self._preparing is not None and not self._preparing.expired():
            self._preparing.reschedule(asyncio.get_running_loop().time())

    async def restart(self, while_down: Callable[[], Awaitable[None]]) -> None:
        """Stop the child, run `while_down` (its OSError or CortexError is raised here), start it again."""
        if self.stopped.is_set() or self._order is not None:
            raise Conflict(
                f"{self.child.name} is not running or is being restarted.", code="embedded.not_running"
            )
        self._order = order = _Restart(while_down)
        self._wake.set()
        await order.done.wait()
        if order.error:
            raise order.error

    async def look_after(self) -> None:
        """Keep the log bounded, and restart a child whose check says so. To be called every few seconds."""
        with contextlib.suppress(OSError):
            logs.rotate(self._log)
        if self.ready.is_set():
            with contextlib.suppress(OSError):
                self._illness = await self.child.check()
            if self._illness:
                self._wake.set()

    async def keep(self) -> None:
        """Keep the child alive until `halt`. Ends early, with `failure` set, if it cannot be brought up."""
        try:
            while not self._halt and not all(other.ready.is_set() for other in self.needs):
                await self._sleep(None)
            await self._keep_alive()
        finally:
            self.ready.clear()
            self.stopped.set()
            self._changed.set()
            if self._order is not None:
                self._order.error = Conflict(f"{self.child.name} was stopped.", code="embedded.not_running")
                self._order.done.set()

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        deaths = 0
        while not self._halt:
            born = loop.time()
            reason = await self._live()
            lived = loop.time() - born
            self.ready.clear()
            if self._halt:
                return
            if self._order is not None:
                deaths = 0
                await self._obey(self._order)
                continue
            self._happen(Happening.died, lived, reason)
            deaths = 1 if lived > HEALTHY_SECONDS else deaths + 1
            if not self._was_ready and deaths >= START_ATTEMPTS_MAX:
                words = logs.tail(self._log, start=self._log_start)
                self.failure = start_failure(self.child.name, reason, words, self._log)
                return
            if deaths > 1:
                await self._back_off(min(BACKOFF_SECONDS * 2 ** (deaths - 2), BACKOFF_SECONDS_MAX))

    async def _live(self) -> str:
        """One life of the child, from preparation to its end; returns why it ended."""
        born = asyncio.get_running_loop().time()
        self._log_start = logs.size(self._log)
        try:
            async with asyncio.timeout(self.child.start_seconds) as self._preparing:
                await self.child.prepare()
            if self._halt:
                return ""
            self.process = process = self._spawn()
        except TimeoutError:
            return f"its preparation took more than {self.child.start_seconds:.0f} s"
        except OSError as error:
            return f"it cannot be started: {error.strerror or error} ({error.filename})"
        except CortexError as error:
            if not self._was_ready:
                self.failure = error
                self._halt = True
            return error.message
        finally:
            self._preparing = None
        self._happen(Happening.started)
        try:
            return await self._watch(process, born)
        finally:
            if process.returncode is None:
                await self._end(process)
            self.process = None

    def _spawn(self) -> Process:
        log = logs.open_log(self._log)
        try:
            return Process.start(
                self.child.argv,
                env=self.child.env,
                cwd=self.child.cwd,
                log=log,
                record=self._home.record(self.child.name),
                stop_signal=self.child.stop_signal,
                stop_seconds=self.child.stop_seconds,
                identity=self.child.identity,
                on_exit=self._wake.set,
            )
        finally:
            os.close(log)

    async def _watch(self, process: Process, born: float) -> str:
        """Until the child ends (returns how), or an order comes (returns nothing)."""
        loop = asyncio.get_running_loop()
        while True:
            if process.returncode is not None:
                return _how_it_ended(process.returncode)
            if self._halt or self._order is not None:
                return ""
            if self._illness:
                reason, self._illness = self._illness, ""
                return reason
            if self.ready.is_set():
                await self._sleep(None)
            elif await self._is_ready():
                if process.returncode is None:
                    self._rise(loop.time() - born)
            elif loop.time() - born > self.child.start_seconds:
                return f"it was not ready within {self.child.start_seconds:.0f} s"
            else:
                await self._sleep(_PROBE_PAUSE_SECONDS)

    def _rise(self, seconds: float) -> None:
        self.ready.set()
        self._changed.set()
        for other in self.needed_by:
            other._wake.set()
        self._happen(Happening.restarted if self._was_ready else Happening.ready, seconds)
        self._was_ready = True

    async def _is_ready(self) -> bool:
        try:
            async with asyncio.timeout(_PROBE_SECONDS_MAX):
                return await self.child.ready()
        except OSError:  # TimeoutError is one
            return False

    async def _end(self, process: Process) -> None:
        if self._halt:
            for other in self.needed_by:
                await other.stopped.wait()
        began = asyncio.get_running_loop().time()
        await process.end(self.child.stop_signal, self.child.stop_seconds)
        took = asyncio.get_running_loop().time() - began
        self._happen(Happening.stopped, took, "" if process.returncode is not None else "it does not die")

    async def _obey(self, order: _Restart) -> None:
        try:
            await order.while_down()
        except (OSError, CortexError) as error:
            order.error = error
        self._order = None
        order.done.set()

    async def _back_off(self, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not self._halt and self._order is None:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return
            await self._sleep(left)

    async def _sleep(self, seconds: float | None) -> None:
        """Until something happened (an order, an exit, another child's readiness), at most `seconds`.

        Callers look again afterwards. What happened before the call counts, if nobody has slept since.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    def _happen(self, happening: Happening, seconds: float = 0.0, detail: str = "") -> None:
        pid = self.process.pid if self.process else None
        self._tell(Event(happening, self.child.name, pid, seconds, detail))


def _how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return f"it exited with status {returncode}"
    try:
        return f"it was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"it was ended by signal {-returncode}"
