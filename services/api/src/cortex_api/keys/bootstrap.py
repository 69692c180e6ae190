"""The first start: who this fleet is, and a first admin key."""

from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.db.tables import ApiKey, Audit, Fleet
from cortex_api.keys import repository
from cortex_api.keys.schemas import KeyFields
from cortex_api.keys.service import new_key, row_of


async def bootstrap(session: AsyncSession, token: str | None, fleet: str) -> str | None:
    """Make what is missing; the caller holds the lock under which databases are prepared.

    Returns the admin key if a random one was made, to be shown once. `token` becomes the admin key if there
    is none, also when a key that was it has been revoked. `fleet` becomes the id of a fleet that has none.
    """
    if (await session.exec(select(Fleet.id))).one_or_none() is None:
        session.add(Fleet(fleet=fleet))
        await session.flush()
    if await repository.usable_admins(session):
        return None
    made = None if token is not None else new_key()
    row = row_of(token or made or "", KeyFields(name="admin", role="admin"), created_by=None)
    before = (await session.exec(select(ApiKey).where(ApiKey.hash == row.hash))).one_or_none()
    if before is not None:
        before.role, before.revoked_at, before.expires_at = "admin", None, None
        session.add(before)
    else:
        session.add(row)
    session.add(Audit(actor="cortex", action="key.created", target="key/admin", detail={"first": True}))
    await repository.bump_version(session)
    await session.flush()
    return made
