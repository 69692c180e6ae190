"""What can be done with keys. Every change makes a new version of the ring that gateways read."""

import secrets
from typing import Any

from cortex_shared.clock import utc_now
from cortex_shared.contracts.keys import KEY_PREFIX, hash_key
from cortex_shared.errors import Conflict, Forbidden, InvalidInput
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.audit import record
from cortex_api.auth.principals import Principal
from cortex_api.db.tables import ApiKey
from cortex_api.hints import Hints
from cortex_api.keys import repository
from cortex_api.keys.schemas import KeyCreate, KeyCreated, KeyFields, KeyOut, KeyPatch

_SHOWN = len(KEY_PREFIX) + 4


def new_key() -> str:
    """`sk-cortex-` and 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def row_of(key: str, fields: KeyFields, *, created_by: str | None) -> ApiKey:
    """The row of a key: its hash, never the key."""
    return ApiKey(
        hash=hash_key(key), shown=key[:_SHOWN], created_by=created_by, **fields.model_dump(include=_FIELDS)
    )


_FIELDS = set(KeyFields.model_fields)


def out(row: ApiKey) -> KeyOut:
    """The answer."""
    return KeyOut.model_validate(row.model_dump(include=set(KeyOut.model_fields)))


async def create(session: AsyncSession, hints: Hints, principal: Principal, body: KeyCreate) -> KeyCreated:
    """A new key. Raises Forbidden, InvalidInput."""
    _check_role(principal, body.role)
    _check_expiry(body)
    key = new_key()
    row = row_of(key, body, created_by=principal.name)
    session.add(row)
    await session.flush()
    await _changed(session, hints, principal, row, "key.created", f"key {row.name} was created")
    return KeyCreated(**out(row).model_dump(), key=key)


async def patch(
    session: AsyncSession, hints: Hints, principal: Principal, key_id: int, body: KeyPatch
) -> KeyOut:
    """Change a key; null resets a field. Raises Conflict, Forbidden, InvalidInput, NotFound."""
    row = await _locked(session, key_id)
    _check_role(principal, row.role)
    if row.revoked_at is not None:
        raise Conflict(f"key {row.name} is revoked", code="keys.revoked", remedy="create a new key instead")
    change: dict[str, Any] = body.model_dump(exclude_unset=True)
    stored = row.model_dump(include=_FIELDS)
    for name, value in change.items():
        if value is not None:
            stored[name] = value
        elif name != "name":
            del stored[name]
    fields = KeyFields.model_validate(stored)
    _check_role(principal, fields.role)
    if "expires_at" in change:
        _check_expiry(fields)
    if row.role == "admin" and fields.role != "admin":
        await _check_not_last(session, row)
    for name in _FIELDS:
        setattr(row, name, getattr(fields, name))
    session.add(row)
    detail = {"fields": sorted(change)}
    await _changed(session, hints, principal, row, "key.changed", f"key {row.name} was changed", detail)
    return out(row)


async def revoke(session: AsyncSession, hints: Hints, principal: Principal, key_id: int) -> None:
    """Revoke a key; doing so twice is fine. Raises Conflict, Forbidden, NotFound."""
    row = await _locked(session, key_id)
    _check_role(principal, row.role)
    if row.revoked_at is not None:
        return
    if row.role == "admin":
        await _check_not_last(session, row)
    row.revoked_at = utc_now()
    session.add(row)
    await _changed(session, hints, principal, row, "key.revoked", f"key {row.name} was revoked")


async def _locked(session: AsyncSession, key_id: int) -> ApiKey:
    """A key, locked; before an admin key all of them, in order: two changes at once do not deadlock."""
    if (await repository.get(session, key_id)).role == "admin":
        await repository.usable_admins(session)
    return await repository.get(session, key_id, lock=True)


async def _changed(
    session: AsyncSession,
    hints: Hints,
    principal: Principal,
    row: ApiKey,
    action: str,
    message: str,
    detail: dict[str, Any] | None = None,
) -> None:
    await repository.bump_version(session)
    hints.keys = True
    record(session, hints, principal, action, f"key/{row.id}", message, detail=detail)


def _check_role(principal: Principal, role: str) -> None:
    if role == "admin" and principal.role != "admin":
        raise Forbidden(
            "keys of administrators are an administrator's to change",
            code="keys.admin_only",
            field="role",
            remedy="use an admin key",
        )


def _check_expiry(fields: KeyFields) -> None:
    if fields.expires_at is not None and fields.expires_at <= utc_now():
        raise InvalidInput(
            "expires_at is in the past",
            code="keys.expired",
            field="expires_at",
            remedy="give a time in the future, or null for a key that does not end",
        )


async def _check_not_last(session: AsyncSession, row: ApiKey) -> None:
    if all(other.id == row.id for other in await repository.usable_admins(session)):
        raise Conflict(
            f"key {row.name} is the last admin key",
            code="keys.last_admin",
            remedy="create another admin key first",
        )
