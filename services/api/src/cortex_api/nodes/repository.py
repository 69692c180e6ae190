"""SQL of nodes."""

from collections.abc import Sequence

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.db.tables import Node


async def all_nodes(session: AsyncSession) -> Sequence[Node]:
    """Every node that administrators know, by name."""
    return (await session.exec(select(Node).order_by(col(Node.name)))).all()


async def find(session: AsyncSession, name: str, *, lock: bool = False) -> Node | None:
    """One node."""
    statement = select(Node).where(Node.name == name)
    if lock:
        statement = statement.with_for_update()
    return (await session.exec(statement)).one_or_none()
