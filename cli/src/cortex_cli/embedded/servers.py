"""The three embedded servers of a home as one: their children, and the way to come back empty."""

import shutil
from collections.abc import Awaitable, Callable

from cortex_cli.embedded.child import Child
from cortex_cli.embedded.layout import Home
from cortex_cli.embedded.nats import Nats
from cortex_cli.embedded.postgres import Postgres
from cortex_cli.embedded.redis import Redis

NAMES = ("postgres", "nats", "redis")


class Servers:
    """Postgres, NATS and Redis of one home; arguments as in their classes."""

    def __init__(
        self,
        home: Home,
        *,
        nats_authority: str,
        nats_host: str = "127.0.0.1",
        nats_port: int | None = None,
        careless: bool = False,
    ) -> None:
        self._home = home
        self.postgres = Postgres(home, careless=careless)
        self.nats = Nats(home, nats_authority, host=nats_host, port=nats_port)
        self.redis = Redis(home, careless=careless)

    async def children(self) -> list[Child]:
        """What to supervise; none needs another."""
        return [await self.postgres.child(), await self.nats.child(), await self.redis.child()]

    def empty(self, name: str) -> Callable[[], Awaitable[None]]:
        """What makes the (stopped) server come back with nothing in it: for `Supervisor.restart`."""
        folder = {"postgres": self._home.postgres, "nats": self._home.nats, "redis": self._home.redis}[name]

        async def wipe() -> None:
            if folder.exists():
                shutil.rmtree(folder)

        return wipe
