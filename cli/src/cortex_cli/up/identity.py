"""Who a home is: its node's name, its secrets, its NATS credentials; all made at the first start."""

import asyncio
import re
import sys
from pathlib import Path

from cortex_shared.errors import Unavailable
from cortex_shared.ids import TOKEN_PATTERN, default_node_name

from cortex_cli.embedded.layout import Home, read_json, write_json

SERVICES = ("api", "monitor", "gateway")


class NatsFiles:
    """Paths of the NATS keys of a home; each file is 0600."""

    def __init__(self, home: Home, node: str) -> None:
        self._home = home
        self.authority = home.secrets / "nats-authority.json"
        self.server = home.secrets / "nats-authority.conf"
        self.node = home.secrets / f"node-{node}.creds"

    def service(self, name: str) -> Path:
        """Credentials of a service."""
        return self._home.secrets / f"{name}.creds"

    def signed(self) -> list[Path]:
        """All that the authority signed."""
        return [self.server, *self._home.secrets.glob("*.creds")]

    def complete(self) -> bool:
        """Whether nothing is missing."""
        needed = [self.authority, self.server, self.node, *map(self.service, SERVICES)]
        return all(path.exists() for path in needed)


def node_name(home: Home) -> str:
    """The local node's name: this host's at the first start, and the same ever after."""
    config = read_json(home.config_file)
    found = config.get("node")
    if isinstance(found, str) and re.match(TOKEN_PATTERN, found):
        return found
    name = default_node_name()
    write_json(home.config_file, config | {"node": name})
    return name


def admin_token(home: Home) -> str:
    """The token that the API installs for its first administrator."""
    return f"sk-cortex-{home.secret('admin-token')}"


def master_key(home: Home) -> str:
    """A Fernet key: 32 random bytes in URL-safe base64, padded."""
    return home.secret("master-key") + "="


def engine_secret(home: Home) -> str:
    """What the keys of engines are derived from."""
    return home.secret("engine-secret")


async def nats_files(home: Home, node: str) -> NatsFiles:
    """The NATS keys, made where they are missing. Raises Unavailable when that fails."""
    files = NatsFiles(home, node)
    if files.complete():
        return files
    minting = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cortex_cli.up.mint",
        str(home.path),
        node,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await minting.communicate()
    except asyncio.CancelledError:
        minting.kill()
        await minting.wait()
        raise
    if minting.returncode != 0:
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise Unavailable(
            f"The NATS keys cannot be made: {last[0]}",
            code="up.nats_keys",
            remedy=f"If {files.authority} is damaged, restore it, or remove it to make new keys "
            "(nodes elsewhere then need new credentials).",
        )
    return files
