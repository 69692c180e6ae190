"""Ports for engines: the plan's own, else the one given before, else the first that is free."""

import errno
import socket

import psutil
from cortex_shared.errors import Conflict, Unavailable


class Ports:
    """Which port is whose on this host's address. Not given twice, even before the engine listens."""

    def __init__(self, address: str, first: int, last: int) -> None:
        self._address = address
        self._first = first
        self._last = last
        self._given: dict[str, int] = {}

    def keep(self, instance: str, port: int) -> None:
        """Note the port of an engine that runs already."""
        self._given[instance] = port

    def give(self, instance: str, *, wanted: int | None, last: int | None) -> int:
        """A port on which nobody listens. `wanted`: by the plan; `last`: what this instance had.

        Raises Conflict (`port_in_use`) when the plan's own is taken, Unavailable when all are.
        """
        taken = {port for owner, port in self._given.items() if owner != instance}
        if wanted is not None:
            if wanted in taken or not self._free(wanted):
                raise self._in_use(wanted)
            self._given[instance] = wanted
            return wanted
        for port in ([last] if last else []) + list(range(self._first, self._last + 1)):
            if port not in taken and self._free(port):
                self._given[instance] = port
                return port
        raise Unavailable(
            f"all ports from {self._first} to {self._last} are in use on {self._address}",
            code="no_port",
            remedy="widen the agent's port_first and port_last, or stop what uses them",
        )

    def release(self, instance: str) -> None:
        """The instance needs it no more."""
        self._given.pop(instance, None)

    def _free(self, port: int) -> bool:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((self._address, port))
                trial.listen(1)  # two sockets may be bound to a port; only one may listen
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    return False
                raise Unavailable(
                    f"nothing can listen on {self._address}: {error.strerror}",
                    code="bad_address",
                    remedy="start the agent with --address and an address of this host",
                ) from error
        return True

    def _in_use(self, port: int) -> Conflict:
        owner = next((name for name, given in self._given.items() if given == port), None)
        by = f" by instance {owner}" if owner else _listener(port)
        return Conflict(
            f"port {port} is in use on {self._address}{by}",
            code="port_in_use",
            field="port",
            remedy="leave the port to Cortex, choose another, or stop what uses it",
        )


def _listener(port: int) -> str:
    try:
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr[1] == port and found.pid:
                return f" by {psutil.Process(found.pid).name()} (pid {found.pid})"
    except psutil.Error:
        pass  # not ours to see
    return ""
