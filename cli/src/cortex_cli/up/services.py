"""Cortex's own services as children of the supervisor: what each is told by its environment."""

import json
import sys
from functools import partial

from cortex_cli.embedded import nats, postgres, redis
from cortex_cli.embedded.child import Child
from cortex_cli.embedded.layout import Home, private_folder
from cortex_cli.embedded.servers import Servers
from cortex_cli.served_folders import roots_file
from cortex_cli.settings import CliSettings
from cortex_cli.up import identity
from cortex_cli.up.addresses import LOOPBACK, Addresses
from cortex_cli.up.http import is_ready
from cortex_cli.up.identity import NatsFiles

AGENT = "node-agent"
AGENT_MODULE = "cortex_node_agent"
DRAIN_SECONDS = 10
_STOP_SECONDS = DRAIN_SECONDS + 5.0


class Services:
    """api, monitor, gateway and node-agent of one home."""

    def __init__(
        self, home: Home, settings: CliSettings, servers: Servers, addresses: Addresses, files: NatsFiles
    ) -> None:
        self._home = home
        self._settings = settings
        self._servers = servers
        self._addresses = addresses
        self._files = files

    def children(self) -> list[Child]:
        """What to supervise: each after the servers that it talks to, none after another."""
        return [self._api(), self._monitor(), self._gateway(), self._agent()]

    def _api(self) -> Child:
        own = {
            "CORTEX_DATABASE__URL": self._servers.postgres.url(scheme="postgresql+asyncpg"),
            "CORTEX_MASTER_KEY": identity.master_key(self._home),
            "CORTEX_ENGINE_SECRET": identity.engine_secret(self._home),
            "CORTEX_BOOTSTRAP_TOKEN": identity.admin_token(self._home),
            "CORTEX_NATS_AUTHORITY": str(self._files.authority),
        }
        after = (postgres.NAME, nats.NAME, redis.NAME)
        return self._service("api", own | self._redis(), after)

    def _monitor(self) -> Child:
        own = {"CORTEX_ENGINE_SECRET": identity.engine_secret(self._home)}
        return self._service("monitor", own | self._redis(), (nats.NAME, redis.NAME))

    def _gateway(self) -> Child:
        state = private_folder(self._home.data / "gateway")
        own = {
            "CORTEX_ENGINE_SECRET": identity.engine_secret(self._home),
            "CORTEX_METER__JOURNAL_DIR": str(private_folder(state / "journal")),
            "CORTEX_SNAPSHOT_DIR": str(private_folder(state / "snapshot")),
        }
        return self._service("gateway", own | self._redis(), (nats.NAME, redis.NAME))

    def _agent(self) -> Child:
        node = identity.node_name(self._home)
        own = {
            "CORTEX_AGENT__NODE": node,
            "CORTEX_AGENT__ADDRESS": LOOPBACK,
            "CORTEX_AGENT__STATE": str(self._home.node(node)),
            "CORTEX_AGENT__MODEL_ROOTS_FILE": str(roots_file(self._home)),
            "CORTEX_AGENT__MODEL_ROOTS": json.dumps([str(self._home.models)]),
            "CORTEX_NATS__CREDENTIALS": str(self._files.node),
        }
        # Engines want what the user's own shell has: CUDA's and the proxy's variables, PATH, HF_HOME.
        return self._service(AGENT, self._settings.environment | own, (nats.NAME,))

    def _redis(self) -> dict[str, str]:
        return {"CORTEX_REDIS__URL": self._servers.redis.url()}

    def _service(self, name: str, own: dict[str, str], after: tuple[str, ...]) -> Child:
        host, port = self._addresses.host(name), self._addresses.ports[name]
        told = {
            "CORTEX_NATS__URL": self._servers.nats.url(),
            "CORTEX_NATS__CREDENTIALS": str(self._files.service(name)),
            "CORTEX_HTTP__HOST": host,
            "CORTEX_HTTP__PORT": str(port),
            "CORTEX_HTTP__DRAIN_SECONDS": str(DRAIN_SECONDS),
            # glibc gives every thread an arena of its own; services with few threads do not need them.
            "MALLOC_ARENA_MAX": "2",
        }
        return Child(
            name=name,
            argv=(sys.executable, "-m", f"cortex_{name.replace('-', '_')}"),
            env=self._settings.services() | told | own,
            cwd=self._home.data,
            ready=partial(is_ready, self._addresses.reach(name), port, "/livez"),
            stop_seconds=_STOP_SECONDS,
            after=after,
        )
