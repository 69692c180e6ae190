"""Asks engines on this host how they are: every 20 ms while they start."""

from cortex_shared import http_get
from cortex_shared.http_get import Answer


async def get(
    host: str,
    port: int,
    path: str,
    *,
    timeout_seconds: float,
    bearer: str | None = None,
    body_bytes_max: int = 0,
) -> Answer | None:
    """GET over a connection of its own; None when there was no whole answer in time.

    `body_bytes_max` 0 leaves the body unread; a longer body counts as no answer.
    """
    try:
        return await http_get.get(
            host, port, path, timeout_seconds=timeout_seconds, bearer=bearer, body_bytes_max=body_bytes_max
        )
    except (OSError, EOFError, ValueError):
        return None
