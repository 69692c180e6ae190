"""SQL of usage."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, literal, or_, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.db.tables import ApiKey, Model, Usage
from cortex_api.rest.pages import INTEGER_MAX
from cortex_api.usage.schemas import GroupBy, UsageRow

GROUPS_MAX = 10_000


async def sums(
    session: AsyncSession,
    *,
    group_by: GroupBy,
    start: datetime,
    end: datetime,
    model: str | None = None,
    key: str | None = None,
) -> list[UsageRow]:
    """Sums of requests that began in [start, end), by group; days in order.

    `model` and `key` are ids (digits) or names: as they are now, or as they were when they were used.
    """
    day = func.to_char(func.timezone("UTC", col(Usage.started_at)), "YYYY-MM-DD")
    name: Any
    ident: Any
    if group_by == "day":
        name, ident = day, literal(None)
    elif group_by == "model":
        # Named as it is now; a deleted model by the name that clients used.
        name = func.coalesce(func.max(col(Model.name)), func.max(col(Usage.route)))
        ident = col(Usage.model_id)
    else:
        name = func.coalesce(func.max(col(ApiKey.name)), func.max(col(Usage.key_name)), "no key")
        ident = col(Usage.key_id)
    statement = (
        select(
            name,
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
    if model is not None:
        statement = statement.where(_of_model(model))
    if key is not None:
        statement = statement.where(_of_key(key))
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


async def tokens_since(
    session: AsyncSession, start: datetime, key_ids: Collection[int] | None = None
) -> dict[int, int]:
    """Tokens (prompt and completion) of requests that began at `start` or later, by key; 0 is left out.

    `key_ids`: only of these keys. An index holds all that it reads.
    """
    # Each is summed on its own: a sum of two columns of type integer may be too large for one.
    tokens = func.sum(col(Usage.prompt_tokens)) + func.sum(col(Usage.completion_tokens))
    statement = (
        select(col(Usage.key_id), tokens)
        .where(col(Usage.started_at) >= start, col(Usage.key_id).is_not(None))
        .group_by(col(Usage.key_id))
    )
    if key_ids is not None:
        statement = statement.where(col(Usage.key_id).in_(key_ids))
    found = await (await session.connection()).execute(statement)
    return {key_id: int(tokens) for key_id, tokens in found if key_id is not None and tokens}


def _of_model(model: str) -> ColumnElement[bool]:
    if _is_id(model):
        return col(Usage.model_id) == int(model)
    named = select(col(Model.id)).where(col(Model.name) == model)
    return or_(col(Usage.model_id).in_(named), col(Usage.route) == model)


def _of_key(key: str) -> ColumnElement[bool]:
    if _is_id(key):
        return col(Usage.key_id) == int(key)
    named = select(col(ApiKey.id)).where(col(ApiKey.name) == key)
    return or_(col(Usage.key_id).in_(named), col(Usage.key_name) == key)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= INTEGER_MAX
