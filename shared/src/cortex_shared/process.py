"""serve(): signals, one task group, uvicorn as a sibling of the loops, ordered shutdown."""

import gc
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import anyio
import uvicorn
from anyio.abc import TaskGroup
from starlette.types import ASGIApp

from cortex_shared.bell import Bell

type Task = Callable[[], Coroutine[Any, Any, None]]

# New objects between two collections of the youngest; Python's own 700 are met some hundred times a second
# by a busy gateway. Garbage in cycles is a few MiB more at most.
_COLLECT_AFTER = 10_000


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = Bell()

    # uvicorn raises SIGTERM again after draining, which kills the process before our own clean-up runs.
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    # uvicorn looks ten times a second whether to stop, which is half the CPU of an idle service.
    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await self._stopping.wait(1)

    def stop(self, *, at_once: bool = False) -> None:
        """Drain and end, or cut what is open."""
        self.should_exit = True
        self.force_exit = at_once
        self._stopping.ring()


async def serve(
    app: ASGIApp,
    tasks: Sequence[Task],
    *,
    host: str,
    port: int,
    drain_seconds: int,
    on_stop: Callable[[], Awaitable[None]] | None = None,
    sockets: list[socket.socket] | None = None,
    stops: AsyncIterator[object] | None = None,
    **uvicorn_options: Any,
) -> None:
    """Run the HTTP server and the tasks as siblings until SIGTERM or SIGINT, or until one of them fails.

    A loop that dies takes the process with it; inside an ASGI lifespan the server would go on answering,
    healthy and deaf. On a signal: `on_stop` is awaited, the server drains at most `drain_seconds`, then
    the tasks are cancelled. A second signal cuts the drain short. `stops` takes the place of the signals: it
    yields once to drain and once more to cut. Raises what a task raised.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_seconds,
        **uvicorn_options,
    )
    server = _Server(config)

    async def stop_in_order() -> None:
        if on_stop is not None:
            await on_stop()
        server.stop()

    async def stop_on_signal(group: TaskGroup) -> None:
        with _signals() if stops is None else nullcontext(stops) as asked:
            await anext(asked)
            # In a task of its own, so that a second signal is heard while it lasts.
            group.start_soon(stop_in_order)
            await anext(asked)
            server.stop(at_once=True)

    _collect_less()
    async with anyio.create_task_group() as group:
        group.start_soon(stop_on_signal, group)
        for task in tasks:
            group.start_soon(task)
        try:
            await server.serve(sockets=sockets)
        finally:
            # Cancelled, since a task failed: uvicorn closes what it opened only when it is stopped in order.
            for listener in getattr(server, "servers", ()):
                listener.close()
            for connection in list(server.server_state.connections):
                connection.transport.abort()
        group.cancel_scope.cancel()


def _collect_less() -> None:
    # What a process has once it is built stays: a collection that looks at all of it again and again finds
    # nothing. What comes later dies by its last reference, all but a few cycles, which may wait a little.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


def _signals() -> AbstractContextManager[AsyncIterator[object]]:
    return anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a service's main on uvloop until it ends."""
    anyio.run(main, backend_options={"use_uvloop": True})
