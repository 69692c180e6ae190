"""The process of `cortex up`: `python -m cortex_cli.up`, with the options of the command."""

import argparse
import asyncio
import sys
from pathlib import Path

from cortex_cli.embedded.layout import Home
from cortex_cli.settings import read_settings
from cortex_cli.up.addresses import LOOPBACK
from cortex_cli.up.console import Console
from cortex_cli.up.system import Up, live


def main(arguments: list[str]) -> int:
    """Run until a signal; an exit code as `cortex --help` lists them."""
    parser = argparse.ArgumentParser(prog="cortex up")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--listen", default=LOOPBACK)
    parser.add_argument("--gateway-port", type=int)
    parser.add_argument("--api-port", type=int)
    parser.add_argument("--detached", action="store_true")
    chosen = parser.parse_args(arguments)
    settings = read_settings()
    ports = {"gateway": chosen.gateway_port, "api": chosen.api_port}
    up = Up(
        home=Home(chosen.home or settings.home, runtime_folder=settings.runtime_folder),
        settings=settings,
        console=Console(),
        listen=chosen.listen,
        ports={name: port for name, port in ports.items() if port is not None},
        detached=chosen.detached,
    )
    return asyncio.run(live(up))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
