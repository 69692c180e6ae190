"""Identifiers: what they look like, and the functions that make them."""

import re
import secrets
import socket

from cortex_shared.errors import InvalidInput

# Every id travels as one token of a NATS subject, hence no dots, stars or spaces.
TOKEN_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
_TOKEN = re.compile(TOKEN_PATTERN)


def new_instance_id() -> str:
    """A random instance id of 16 hexadecimal digits.

    Random, not counted: after a restored database a counter would give a running engine's id to another.
    """
    return secrets.token_hex(8)


def new_request_id() -> str:
    """A random request id as clients see it in `x-request-id`."""
    return f"req_{secrets.token_hex(12)}"


def check_token(value: str, *, field: str) -> str:
    """Return `value` if it can be a token of a subject, else raise InvalidInput naming `field`."""
    if _TOKEN.fullmatch(value) is None:
        raise InvalidInput(
            f"{field} {value!r} is not a valid name",
            code="id.invalid",
            field=field,
            remedy="use 1 to 63 letters, digits, dashes or underscores, beginning with a letter or digit",
        )
    return value


def default_node_name() -> str:
    """This host's name as a node id: the host name with everything that is not allowed made a dash."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()).strip("-_")[:63]
    return name or "node"
