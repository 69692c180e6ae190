"""Owners: which engine keeps a response that was created through a gateway, and for whom.

vLLM lets the caller name a response. A name that the gateway chose says, to every gateway of the fleet, which
engine has it: it ends with a hash over its random beginning, the engine, and the key that created it. Names
that other engines chose are remembered by the gateway that passed them on, as many as it may.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from cortex_gateway.keys import Key

_PREFIX = "resp_"
_RANDOM_HEX = 24
_HASH_HEX = 16
_KEY_MAX_BYTES = 64  # of BLAKE2b


@dataclass(frozen=True, slots=True)
class Owner:
    """The route and the engine of a response, and the key that created it."""

    route: str
    instance: str
    key_id: int | None
    key_name: str | None

    def is_for(self, key: Key) -> bool:
        """Whether this key created it: to any other it does not exist."""
        return (self.key_id, self.key_name) == (key.id, key.name)


class Engine(Protocol):
    """An engine, as far as it matters here."""

    @property
    def instance(self) -> str: ...


class Kept(Protocol):
    """A route, as far as it matters here."""

    @property
    def name(self) -> str: ...
    @property
    def endpoints(self) -> Iterable[Engine]: ...


class Owners:
    """Names responses, finds who keeps them, and remembers those that it did not name.

    What was not asked for the longest is forgotten.
    """

    __slots__ = ("_entries_max", "_owners", "_routes", "_secret")

    def __init__(self, entries_max: int, secret: str, routes: Callable[[], Iterable[Kept]]) -> None:
        """`secret` is the fleet's; `routes` gives the routes of this moment."""
        self._entries_max = entries_max
        self._secret = secret.encode()[:_KEY_MAX_BYTES]
        self._routes = routes
        self._owners: dict[str, Owner] = {}

    def name(self, instance: str, key: Key) -> str:
        """A name for a response that this engine is about to make for this key."""
        start = _PREFIX + secrets.token_hex(_RANDOM_HEX // 2)
        return start + self._hash(start, instance, key)

    def remember(self, response: str, owner: Owner) -> None:
        """A response was created whose name the engine chose."""
        owners = self._owners
        owners.pop(response, None)
        if len(owners) >= self._entries_max:
            if not owners:
                return
            del owners[next(iter(owners))]
        owners[response] = owner

    def find(self, response: str, key: Key) -> Owner | None:
        """Who keeps it, if that can be known. Look at `is_for`: it may be another's."""
        owner = self._owners.pop(response, None)
        if owner is not None:
            self._owners[response] = owner
            return owner
        if len(response) != len(_PREFIX) + _RANDOM_HEX + _HASH_HEX or not response.startswith(_PREFIX):
            return None
        start, told = response[:-_HASH_HEX], response[-_HASH_HEX:]
        for route in self._routes():
            for engine in route.endpoints:
                if self._hash(start, engine.instance, key) == told:
                    return Owner(route.name, engine.instance, key.id, key.name)
        return None

    def _hash(self, start: str, instance: str, key: Key) -> str:
        data = f"{start}\0{instance}\0{key.id}\0{key.name}".encode()
        return hashlib.blake2b(data, key=self._secret, digest_size=_HASH_HEX // 2).hexdigest()

    def __len__(self) -> int:
        return len(self._owners)
