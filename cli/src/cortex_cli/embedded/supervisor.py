"""Runs a set of child processes: starts them in order, brings back those that die, stops them in reverse."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from cortex_shared.errors import InvalidInput, NotFound

from cortex_cli.embedded.child import Child, Event, Listener, nothing
from cortex_cli.embedded.keeper import Keeper
from cortex_cli.embedded.layout import Home
from cortex_cli.embedded.process import end_orphans

LOOK_SECONDS = 5.0
"""Between looks at the logs' sizes and the children's checks: a stat() or two a child."""


class Supervisor:
    """`async with Supervisor(home, children, on_event) as supervisor: await supervisor.start(); ...`.

    Use it from the main thread: the kernel ends the children when the thread that started them ends.
    Leaving the block stops everything in order, also when it is left by an error or a cancellation.
    `on_event` is called in the event loop and must not block.
    """

    def __init__(self, home: Home, children: Sequence[Child], on_event: Listener) -> None:
        self._changed = asyncio.Event()
        self._keepers = {child.name: Keeper(home, child, on_event, self._changed) for child in children}
        self._home = home
        self._tasks = asyncio.TaskGroup()
        self._looking: asyncio.Task[None] | None = None
        for keeper in self._keepers.values():
            for name in keeper.child.after:
                if name not in self._keepers:
                    raise InvalidInput(
                        f"{keeper.child.name} is to start after {name}, which is not there.",
                        code="embedded.unknown_child",
                    )
                keeper.needs.append(self._keepers[name])
                self._keepers[name].needed_by.append(keeper)
        _refuse_circles(list(self._keepers.values()))

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        # An error of the block leaves as it is; only what the tasks themselves raise comes as a group.
        if isinstance(error, asyncio.CancelledError):
            await self._tasks.__aexit__(kind, error, trace)
        else:
            await self._tasks.__aexit__(None, None, None)

    async def start(self) -> None:
        """End what an earlier supervisor left running, start all; returns when every child is ready.

        Raises the CortexError of the first child that cannot be brought up, after stopping the others.
        """
        await end_orphans(self._home.run)
        self._looking = self._tasks.create_task(self._look_after(), name="look after")
        for name, keeper in self._keepers.items():
            self._tasks.create_task(keeper.keep(), name=f"keep {name}")
        while not all(keeper.ready.is_set() for keeper in self._keepers.values()):
            failure = next((keeper.failure for keeper in self._keepers.values() if keeper.failure), None)
            if failure is not None:
                await self.stop()
                raise failure
            if all(keeper.stopped.is_set() for keeper in self._keepers.values()):
                return  # stopped from elsewhere in the meantime
            await self._changed.wait()
            self._changed.clear()

    async def stop(self) -> None:
        """Stop all, those that others need last; returns when all have ended. Harmless when repeated."""
        for keeper in self._keepers.values():
            keeper.halt()
        if self._looking is not None:
            self._looking.cancel()
            for keeper in self._keepers.values():
                await keeper.stopped.wait()

    async def restart(
        self, name: str, while_down: Callable[[], Awaitable[None]] = nothing, *, seconds: float = 60
    ) -> None:
        """Stop one child cleanly, run `while_down`, start it again and wait until it is ready.

        Raises NotFound for an unknown name, what `while_down` raised (OSError, CortexError), or TimeoutError.
        """
        keeper = self._keeper(name)
        async with asyncio.timeout(seconds):
            await keeper.restart(while_down)
            await keeper.ready.wait()

    async def wait_ready(self, name: str, *, seconds: float = 60) -> None:
        """Until the child is up (again). Raises NotFound, or TimeoutError."""
        async with asyncio.timeout(seconds):
            await self._keeper(name).ready.wait()

    def pid(self, name: str) -> int | None:
        """The child's pid now; None while it is down. Raises NotFound."""
        process = self._keeper(name).process
        return process.pid if process else None

    def is_ready(self, name: str) -> bool:
        """Whether the child was found ready and has not died since. Raises NotFound."""
        return self._keeper(name).ready.is_set()

    def _keeper(self, name: str) -> Keeper:
        if name not in self._keepers:
            raise NotFound(f"There is no child called {name!r}.", code="embedded.unknown_child", field="name")
        return self._keepers[name]

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for keeper in self._keepers.values():
                await keeper.look_after()


def ignore(_event: Event) -> None:
    """A listener that does not care."""


def _refuse_circles(keepers: list[Keeper]) -> None:
    placed: set[str] = set()
    while len(placed) < len(keepers):
        now = {k.child.name for k in keepers if all(other.child.name in placed for other in k.needs)}
        if now <= placed:
            circle = ", ".join(sorted(k.child.name for k in keepers if k.child.name not in placed))
            raise InvalidInput(f"These wait for each other: {circle}.", code="embedded.circular_start")
        placed |= now
