"""The keyring in memory: who a request comes from, and what that key may use."""

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from cortex_shared.contracts.keys import KeyRecord

from cortex_gateway.errors import ApiError, forbidden_address, keys_not_loaded, no_key, unknown_key
from cortex_gateway.key_limits import KeyLimits
from cortex_gateway.line import rank_of

type LimitsOf = Callable[[Sequence[KeyRecord]], Mapping[int, KeyLimits]]
type Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_BEARER: Final = b"bearer "
KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")


class Key:
    """One key, ready to be checked. `expires` is in seconds of the epoch; `limits` None: it has none."""

    __slots__ = ("all_models", "expires", "id", "limits", "models", "name", "networks", "rank")

    def __init__(self, record: KeyRecord, limits: KeyLimits | None) -> None:
        self.id = record.id
        self.limits = limits
        self.name = record.name
        self.models = frozenset(record.models)
        self.all_models = "*" in self.models
        self.expires = record.expires_at.timestamp() if record.expires_at is not None else None
        self.networks = _networks(record.networks)
        self.rank = rank_of(record.priority)

    def allows(self, route: str) -> bool:
        """Whether it may use the route of this (main) name."""
        return self.all_models or route in self.models


def _networks(texts: Sequence[str]) -> tuple[Network, ...] | None:
    """None: from anywhere. A range that cannot be read lets nobody in by it."""
    if not texts:
        return None
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            continue
    return tuple(found)


class Keys:
    """All keys by the SHA-256 of the key. `loaded` says whether a ring was ever received."""

    __slots__ = ("_anyone", "_by_digest", "_limits_of", "loaded")

    def __init__(self, limits_of: LimitsOf) -> None:
        """`limits_of` gives the limits of a ring's keys, by their ids."""
        self._limits_of = limits_of
        self._by_digest: dict[bytes, Key] = {}
        self._anyone: Key | None = None
        self.loaded = False

    def replace(self, records: Iterable[KeyRecord], anyone: KeyRecord | None = None) -> None:
        """Take a whole ring. `anyone` is whose requests all are, where no key is asked for."""
        ring: dict[bytes, Key] = {}
        records = list(records)
        limits = self._limits_of(records)
        for record in records:
            try:
                ring[bytes.fromhex(record.hash)] = Key(record, limits.get(record.id))
            except ValueError:
                continue
        self._by_digest = ring
        self._anyone = Key(anyone, None) if anyone is not None else None
        self.loaded = True

    def find(self, headers: Iterable[tuple[bytes, bytes]], address: str | None, now: float) -> Key | ApiError:
        """Whose request this is, by its headers (names in lower case); `now` in seconds of the epoch."""
        return self.check(digest_of(headers), address, now)

    def check(self, digest: bytes | None, address: str | None, now: float) -> Key | ApiError:
        """Whose key has this digest; None: no key was presented."""
        if not self.loaded:
            return keys_not_loaded()
        if digest is None:
            return self._anyone or no_key()
        key = self._by_digest.get(digest)
        if key is None or (key.expires is not None and key.expires <= now):
            return self._anyone or unknown_key()
        if key.networks is not None and not _inside(address, key.networks):
            return forbidden_address()
        return key


def digest_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """SHA-256 of the key that a request presents; None: it presents none."""
    secret = secret_of(headers)
    return hashlib.sha256(secret).digest() if secret else None


def secret_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key that a request presents: `Authorization: Bearer`, else `x-api-key`, else `api-key`."""
    other: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if value[:7].lower() == _BEARER:
                return value[7:].strip()
        elif name in (b"x-api-key", b"api-key") and other is None:
            other = value.strip()
    return other


def _inside(address: str | None, networks: tuple[Network, ...]) -> bool:
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    if mapped is not None:
        ip = mapped
    return any(ip in network for network in networks)
