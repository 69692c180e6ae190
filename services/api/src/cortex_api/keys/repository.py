"""SQL of keys."""

from collections.abc import Sequence

from cortex_shared.clock import utc_now
from cortex_shared.contracts.keys import KEY_PREFIX, KeyRecord
from cortex_shared.errors import NotFound
from sqlalchemy import or_, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.db.tables import ApiKey, Audit, Fleet

_INTEGER_MAX = 2**31 - 1


async def page(
    session: AsyncSession, *, role: str | None, q: str | None, with_revoked: bool, after: int, limit: int
) -> Sequence[ApiKey]:
    """Keys in the order of ids, after an id."""
    statement = select(ApiKey).where(col(ApiKey.id) > after)
    if role is not None:
        statement = statement.where(ApiKey.role == role)
    if q:
        statement = statement.where(col(ApiKey.name).icontains(q, autoescape=True))
    if not with_revoked:
        statement = statement.where(col(ApiKey.revoked_at).is_(None))
    return (await session.exec(statement.order_by(col(ApiKey.id)).limit(limit))).all()


async def get(session: AsyncSession, key_id: int, *, lock: bool = False) -> ApiKey:
    """A key by id; raises NotFound."""
    statement = select(ApiKey).where(ApiKey.id == min(key_id, _INTEGER_MAX))
    if lock:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    row = (await session.exec(statement)).one_or_none()
    if row is None:
        raise NotFound(f"there is no key {key_id}", code="keys.not_found", field="id", remedy="see GET /keys")
    return row


async def usable_admins(session: AsyncSession) -> Sequence[ApiKey]:
    """Admin keys that are neither revoked nor expired, locked until the end of the transaction."""
    statement = select(ApiKey).where(
        ApiKey.role == "admin",
        col(ApiKey.revoked_at).is_(None),
        or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > utc_now()),
    )
    statement = statement.order_by(col(ApiKey.id)).with_for_update()
    return (await session.exec(statement.execution_options(populate_existing=True))).all()


async def bump_version(session: AsyncSession) -> None:
    """The ring changed: gateways take only a newer version."""
    await session.exec(update(Fleet).values(keyring_version=col(Fleet.keyring_version) + 1))


async def ring(session: AsyncSession) -> tuple[int, list[KeyRecord]]:
    """Version and records of all keys that are not revoked, as gateways need them."""
    version = (await session.exec(select(Fleet.keyring_version))).one()
    rows = await session.exec(select(ApiKey).where(col(ApiKey.revoked_at).is_(None)))
    return version, [record_of(row) for row in rows]


async def take_in(session: AsyncSession, records: Sequence[KeyRecord]) -> int:
    """Make rows of keys that no row knows, as keys of the gateway alone; returns how many."""
    if not records:
        return 0
    # Two processes at once: the second sees what the first took in.
    await session.exec(select(Fleet).with_for_update())
    hashes = [record.hash for record in records]
    known = set(await session.exec(select(ApiKey.hash).where(col(ApiKey.hash).in_(hashes))))
    unknown = [record for record in records if record.hash not in known]
    for record in unknown:
        fields = record.model_dump(exclude={"id", "type"})
        session.add(ApiKey(**fields, shown=f"{KEY_PREFIX}...", role="user", created_by=None))
        session.add(Audit(actor="cortex", action="key.restored", target=f"key/{record.name}"))
    return len(unknown)


def record_of(row: ApiKey) -> KeyRecord:
    """A key as gateways need it."""
    assert row.id is not None
    return KeyRecord(
        id=row.id,
        name=row.name,
        hash=row.hash,
        models=row.models,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        concurrency=row.concurrency,
        tokens_per_day=row.tokens_per_day,
        tokens_per_month=row.tokens_per_month,
        networks=row.networks,
        priority=row.priority,
        expires_at=row.expires_at,
    )
