"""Doors: knocks at the engines of nodes that fell silent, to tell a dead host from an agent that is away."""

import time
from contextlib import suppress
from urllib.parse import urlsplit

import anyio

from cortex_monitor.state import FleetState

_LOOK_SECONDS = 1.0
_KNOCK_SECONDS = 3.0
_WAIT_SECONDS = 1.5
_AT_ONCE_MAX = 32
_PER_NODE_MAX = 4


class Doors:
    """`run` must be among the process's tasks. A knock is a TCP connection, closed at once: no request."""

    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._limit = anyio.CapacityLimiter(_AT_ONCE_MAX)

    async def run(self) -> None:
        """Knock, while there are nodes in doubt, until cancelled."""
        while True:
            doubted = self._state.doubted()
            async with anyio.create_task_group() as group:
                for node, urls in doubted.items():
                    group.start_soon(self._knock, node, urls[:_PER_NODE_MAX])
            await anyio.sleep(_KNOCK_SECONDS if doubted else _LOOK_SECONDS)

    async def _knock(self, node: str, urls: list[str]) -> None:
        for url in urls:
            async with self._limit:
                if await accepts(url):
                    self._state.reached(node, time.monotonic())
                    return


async def accepts(url: str) -> bool:
    """Whether something accepts a connection there within a moment."""
    parts = urlsplit(url)
    with suppress(OSError, ValueError), anyio.move_on_after(_WAIT_SECONDS):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        stream = await anyio.connect_tcp(parts.hostname or "", port)
        await stream.aclose()
        return True
    return False
