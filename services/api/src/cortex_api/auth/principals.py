"""Principals: who a bearer key belongs to; looked up in Postgres, remembered for a second."""

from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address, ip_network
from time import monotonic
from typing import cast

from cortex_shared.clock import utc_now
from cortex_shared.contracts.keys import hash_key
from cortex_shared.errors import Forbidden, Unauthorized
from sqlmodel import select

from cortex_api.auth.roles import Role, allows
from cortex_api.db.session import Database
from cortex_api.db.tables import ApiKey

_REMEMBER_SECONDS = 1.0
_REMEMBERED_MAX = 1024


@dataclass(frozen=True)
class Principal:
    """Who calls."""

    key_id: int
    name: str
    role: Role
    models: tuple[str, ...] = ("*",)
    networks: tuple[str, ...] = ()
    expires_at: datetime | None = None

    def require(self, needed: Role) -> None:
        """Raise Forbidden unless the role is at least `needed`."""
        if not allows(self.role, needed):
            raise Forbidden(
                f"key {self.name!r} has the role {self.role}; this needs {needed}",
                code="auth.role_too_low",
                remedy=f"use a key with the role {needed}",
            )


class Principals:
    """Finds principals by key."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[float, Principal | None]] = {}

    def forget(self) -> None:
        """Look every key up anew: keys changed."""
        self._known.clear()

    async def find(self, authorization: str | None, client: str | None) -> Principal:
        """Who sends this `Authorization` header from this address.

        Raises Unauthorized, Forbidden when the key may not come from there, Unavailable.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized(
                "no key was given",
                code="auth.missing_key",
                remedy="send the header Authorization: Bearer sk-cortex-...",
            )
        principal = await self._by_hash(hash_key(key.strip()))
        if principal is None or (principal.expires_at is not None and principal.expires_at <= utc_now()):
            raise Unauthorized(
                "the key is unknown, revoked or expired",
                code="auth.unknown_key",
                remedy="ask an administrator for a new key",
            )
        _check_network(principal, client)
        return principal

    async def _by_hash(self, hash_: str) -> Principal | None:
        found = self._known.get(hash_)
        if found is not None and monotonic() - found[0] < _REMEMBER_SECONDS:
            return found[1]
        async with self._database.transaction() as session:
            row = (
                await session.exec(
                    select(ApiKey).where(ApiKey.hash == hash_, ApiKey.revoked_at == None)  # noqa: E711 (SQL)
                )
            ).one_or_none()
        principal = None if row is None else _principal(row)
        if len(self._known) >= _REMEMBERED_MAX:
            self._known.clear()
        self._known[hash_] = (monotonic(), principal)
        return principal


def _principal(row: ApiKey) -> Principal:
    assert row.id is not None
    return Principal(
        row.id, row.name, cast("Role", row.role), tuple(row.models), tuple(row.networks), row.expires_at
    )


def _check_network(principal: Principal, client: str | None) -> None:
    if not principal.networks or client is None:
        return
    try:
        address = ip_address(client)
    except ValueError:  # a Unix socket
        return
    if not any(address in ip_network(network, strict=False) for network in principal.networks):
        raise Forbidden(
            f"key {principal.name!r} may not be used from {client}",
            code="auth.wrong_network",
            remedy=f"call from one of {', '.join(principal.networks)}, or ask for a key without this limit",
        )
