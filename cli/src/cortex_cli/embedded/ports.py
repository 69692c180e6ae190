"""Finding a TCP port: a default that is taken moves on, an explicit one that is taken is an error."""

import errno
import socket

from cortex_shared.errors import Conflict, InvalidInput, Unavailable

_TRIES_MAX = 100


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. Raises InvalidInput for an address of another machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)  # two sockets may be bound to one port; only one may listen
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise InvalidInput(
                f"Nothing can listen on {host}: {error.strerror}.",
                code="embedded.listen_address",
                field="listen",
                remedy="Use an address of this machine, such as 127.0.0.1.",
            ) from error
    return True


def pick(what: str, host: str, port: int, *, explicit: bool, avoid: frozenset[int] = frozenset()) -> int:
    """`port`, or the next free one above it when it is only a default. The caller tells the user if it moved.

    `avoid` holds ports already given away. Raises Conflict (`embedded.port_taken`) for an explicit port.
    """
    if port not in avoid and is_free(host, port):
        return port
    if explicit:
        raise Conflict(
            f"The {what} cannot listen on {host}:{port}: the port is taken.",
            code="embedded.port_taken",
            field=f"{what}_port",
            remedy="Stop the program that uses it (`ss -ltnp` shows which), or choose another port.",
        )
    for candidate in range(port + 1, min(port + _TRIES_MAX, 65536)):
        if candidate not in avoid and is_free(host, candidate):
            return candidate
    raise Unavailable(
        f"No free port for the {what} between {port} and {port + _TRIES_MAX - 1}.",
        code="embedded.no_port",
        field=f"{what}_port",
        remedy="Choose a port yourself.",
    )
