"""serve(): signals, one task group, uvicorn as a sibling of the loops, ordered shutdown."""

import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import uvicorn
from anyio.abc import TaskGroup
from starlette.types import ASGIApp

type Task = Callable[[], Coroutine[Any, Any, None]]


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = anyio.Event()

    # uvicorn raises SIGTERM again after draining, which kills the process before our own clean-up runs.
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    # uvicorn looks ten times a second whether to stop, which is half the CPU of an idle service.
    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with anyio.move_on_after(1):
                await self.stopping.wait()

    def stop(self, *, at_once: bool = False) -> None:
        """Drain and end, or cut what is open."""
        self.should_exit = True
        self.force_exit = at_once
        self.stopping.set()


async def serve(
    app: ASGIApp,
    tasks: Sequence[Task],
    *,
    host: str,
    port: int,
    drain_seconds: int,
    on_stop: Callable[[], Awaitable[None]] | None = None,
    sockets: list[socket.socket] | None = None,
    **uvicorn_options: Any,
) -> None:
    """Run the HTTP server and the tasks as siblings until SIGTERM or SIGINT, or until one of them fails.

    A loop that dies takes the process with it; inside an ASGI lifespan the server would go on answering,
    healthy and deaf. On a signal: `on_stop` is awaited, the server drains at most `drain_seconds`, then
    the tasks are cancelled. A second signal cuts the drain short. Raises what a task raised.
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
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await anext(signals)
            # In a task of its own, so that a second signal is heard while it lasts.
            group.start_soon(stop_in_order)
            await anext(signals)
            server.stop(at_once=True)

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


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a service's main on uvloop until it ends."""
    anyio.run(main, backend_options={"use_uvloop": True})
