"""SQL of usage."""

from datetime import datetime
from typing import Any

from sqlalchemy import func, literal, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.db.tables import ApiKey, Model, Usage
from cortex_api.usage.schemas import GroupBy, UsageRow

GROUPS_MAX = 10_000


async def sums(session: AsyncSession, *, group_by: GroupBy, start: datetime, end: datetime) -> list[UsageRow]:
    """Sums of requests that began in [start, end), by group; days in order."""
    day = func.to_char(func.timezone("UTC", col(Usage.started_at)), "YYYY-MM-DD")
    key: Any
    ident: Any
    if group_by == "day":
        key, ident = day, literal(None)
    elif group_by == "model":
        # Named as it is now; a deleted model by the name that clients used.
        key = func.coalesce(func.max(col(Model.name)), func.max(col(Usage.route)))
        ident = col(Usage.model_id)
    else:
        key = func.coalesce(func.max(col(ApiKey.name)), func.max(col(Usage.key_name)), "no key")
        ident = col(Usage.key_id)
    statement = (
        select(
            key,
            ident,
            func.count(),
            func.count().filter(col(Usage.outcome) != "done"),
            func.coalesce(func.sum(col(Usage.prompt_tokens)), 0),
            func.coalesce(func.sum(col(Usage.completion_tokens)), 0),
            func.coalesce(func.sum(col(Usage.cached_tokens)), 0),
        )
        .where(col(Usage.started_at) >= start, col(Usage.started_at) < end)
        .limit(GROUPS_MAX)
    )
    if group_by == "day":
        statement = statement.group_by(day).order_by(day)
    elif group_by == "model":
        statement = statement.outerjoin(Model, col(Model.id) == col(Usage.model_id)).group_by(ident)
    else:
        statement = statement.outerjoin(ApiKey, col(ApiKey.id) == col(Usage.key_id)).group_by(ident)
    connection = await session.connection()
    return [
        UsageRow(
            group=str(group),
            id=number,
            requests=requests,
            failed=failed,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=cached,
            total_tokens=prompt + completion,
        )
        for group, number, requests, failed, prompt, completion, cached in await connection.execute(statement)
    ]
