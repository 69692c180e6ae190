"""Where the services of one home listen: chosen, found free, and remembered for the next start."""

from dataclasses import dataclass
from typing import cast

from cortex_cli.embedded import ports
from cortex_cli.embedded.layout import Home, read_json, write_json

DEFAULT_PORTS = {"gateway": 8084, "api": 8080, "node-agent": 8086, "monitor": 8087}
LOOPBACK = "127.0.0.1"
_FOR_US_ONLY = ("node-agent", "monitor")


@dataclass(frozen=True, slots=True)
class Addresses:
    """`listen` is for API and gateway; the others stay on loopback. `moved` tells people what moved."""

    listen: str
    ports: dict[str, int]
    moved: tuple[str, ...] = ()

    def host(self, name: str) -> str:
        """Where the service listens."""
        return LOOPBACK if name in _FOR_US_ONLY else self.listen

    def reach(self, name: str) -> str:
        """Where to reach it from this machine: an address that means `all` is none to connect to."""
        return {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(self.host(name), self.host(name))

    def url(self, name: str) -> str:
        """`http://host:port`, as reached from this machine."""
        host = self.reach(name)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.ports[name]}"


def choose(home: Home, listen: str, explicit: dict[str, int]) -> Addresses:
    """Ports for all: an explicit one or an error, else the last one, else the default, else the next free.

    Raises Conflict for an explicit port that is taken, InvalidInput for an address of another machine.
    """
    remembered = read_json(home.config_file).get("ports")
    known = cast("dict[str, object]", remembered) if isinstance(remembered, dict) else {}
    chosen: dict[str, int] = {}
    moved: list[str] = []
    for name in sorted(DEFAULT_PORTS, key=lambda name: name not in explicit):
        last = known.get(name)
        wanted = explicit.get(name) or (last if isinstance(last, int) else DEFAULT_PORTS[name])
        host = LOOPBACK if name in _FOR_US_ONLY else listen
        avoid = frozenset(chosen.values())
        port = ports.pick(name, host, wanted, explicit=name in explicit, avoid=avoid)
        if port != wanted and name not in _FOR_US_ONLY:
            moved.append(f"Port {wanted} is taken: the {name} listens on {port}.")
        chosen[name] = port
    return Addresses(listen, chosen, tuple(moved))


def remember(home: Home, addresses: Addresses) -> None:
    """Keep the ports for the next start."""
    write_json(home.config_file, read_json(home.config_file) | {"ports": addresses.ports})
