"""Keys of engines that Cortex does not run, sealed so that no store on their way holds them in the clear."""

import base64
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cortex_shared.errors import InvalidInput

_VERSION = "v1."
_INFO = b"cortex-endpoint-keys:v1"
_BYTES = 64


def seal(fleet_secret: str, key: str, *, url: str, tls_verify: bool = True, ca: str | None = None) -> str:
    """The key, encrypted and bound to where it may be sent: `v1.` and URL-safe base64.

    AES-SIV (RFC 5297) under a key that HKDF derives from the fleet secret. It is deterministic, so that a
    route that has not changed is the same bytes; address and TLS settings are authenticated with it, so that
    who can write a store, but has no fleet secret, can have no key sent elsewhere.
    """
    sealed = _cipher(fleet_secret).encrypt(key.encode(), _bound_to(url, tls_verify, ca))
    return _VERSION + base64.urlsafe_b64encode(sealed).decode()


def unseal(
    fleet_secret: str, sealed: str, *, url: str, tls_verify: bool = True, ca: str | None = None
) -> str:
    """The key that was sealed for this address with these TLS settings.

    Raises InvalidInput for any other address, another fleet secret, or a form of a later version.
    """
    try:
        if not sealed.startswith(_VERSION):
            raise ValueError
        data = base64.b64decode(sealed.removeprefix(_VERSION), altchars=b"-_", validate=True)
        return _cipher(fleet_secret).decrypt(data, _bound_to(url, tls_verify, ca)).decode()
    except (ValueError, InvalidTag) as error:
        raise InvalidInput(
            f"the key for {url} cannot be read: another fleet secret sealed it, or it is for another place",
            code="endpoint_keys.unreadable",
            remedy="give API, monitor and gateways the same CORTEX_ENGINE_SECRET",
        ) from error


def _bound_to(url: str, tls_verify: bool, ca: str | None) -> list[bytes]:
    return [url.encode(), b"verified" if tls_verify else b"unverified", (ca or "").encode()]


@lru_cache(maxsize=4)
def _cipher(fleet_secret: str) -> AESSIV:
    return AESSIV(HKDF(SHA256(), _BYTES, salt=None, info=_INFO).derive(fleet_secret.encode()))
