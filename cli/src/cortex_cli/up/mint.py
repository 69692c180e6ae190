"""Makes what is missing of a home's NATS keys: `python -m cortex_cli.up.mint HOME NODE`.

A process of its own, because signing needs cryptography, which would stay in the memory of `cortex up`.
"""

import sys
from pathlib import Path

from cortex_shared.nats_auth import Authority

from cortex_cli.embedded.layout import Home, write
from cortex_cli.up.identity import SERVICES, NatsFiles


def main(home: Home, node: str) -> None:
    """Write the authority, its server configuration, and credentials of the services and of `node`."""
    files = NatsFiles(home, node)
    if files.authority.exists():
        authority = Authority.from_json(files.authority.read_text())
    else:
        authority = Authority.create()
        write(files.authority, authority.to_json())
        for path in files.signed():  # signed by keys that are gone
            path.unlink(missing_ok=True)
    if not files.server.exists():
        write(files.server, authority.server_config())
    for service in SERVICES:
        if not files.service(service).exists():
            write(files.service(service), authority.credentials(service, role="service"))
    if not files.node.exists():
        write(files.node, authority.credentials(node, role="node"))


if __name__ == "__main__":
    main(Home(Path(sys.argv[1])), sys.argv[2])
