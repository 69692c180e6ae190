"""TLS towards engines that others run: one context for all of them that want the same."""

import ssl
from functools import lru_cache


@lru_cache(maxsize=64)
def client_context(*, verify: bool = True, ca: str | None = None) -> ssl.SSLContext:
    """A context that trusts the system's certificates, or those of the PEM text `ca` instead.

    Making one reads all of the system's certificates, some 10 ms, hence the cache. Raises ValueError when
    `ca` holds no certificate.
    """
    try:
        context = ssl.create_default_context(cadata=ca)
    except ssl.SSLError as error:
        raise ValueError(f"not PEM certificates: {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
