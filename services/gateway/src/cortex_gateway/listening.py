"""Listening sockets for several processes on one port: one each, and the kernel spreads connections."""

import contextlib
import socket
from typing import cast

from cortex_shared.errors import Conflict, InvalidInput

type _Address = tuple[str, int] | tuple[str, int, int, int]

# As uvicorn has it.
_BACKLOG = 2048


class Listener:
    """One address for a number of processes. Sockets are per process, and made anew when asked."""

    def __init__(self, host: str, port: int) -> None:
        """Find a free port for 0. Raises Conflict when the port is taken, InvalidInput for no address."""
        try:
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise InvalidInput(
                f"{host!r} is no address to listen on: {error.strerror or error}",
                code="gateway.listen",
                field="host",
                remedy="give an address of this host, or 0.0.0.0 for all",
            ) from error
        self._addresses = [(family, cast("_Address", address)) for family, _, _, _, address in found]
        self.port = port
        # SO_REUSEPORT would let a second gateway of the same user share the port unnoticed: without it
        # the kernel says whether somebody has it.
        for family, address in self._addresses:
            with self._bound(family, address, shared=False) as probe:
                self.port = self.port or probe.getsockname()[1]

    def open(self) -> list[socket.socket]:
        """One more process's sockets, listening. Raises Conflict."""
        sockets: list[socket.socket] = []
        try:
            for family, address in self._addresses:
                listening = self._bound(family, address, shared=True)
                sockets.append(listening)
                listening.listen(_BACKLOG)
        except BaseException:
            close(sockets)
            raise
        return sockets

    def _bound(self, family: int, address: _Address, *, shared: bool) -> socket.socket:
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.setblocking(False)
            listening.bind((address[0], self.port, *address[2:]))
        except OSError as error:
            listening.close()
            raise Conflict(
                f"cannot listen on {address[0]} port {self.port}: {error.strerror}",
                code="gateway.listen",
                field="port",
                remedy="stop what listens there, or choose another port",
            ) from error
        return listening


def close(sockets: list[socket.socket]) -> None:
    """Close them all; connections that nobody has accepted are reset."""
    for listening in sockets:
        with contextlib.suppress(OSError):
            listening.close()
    sockets.clear()
