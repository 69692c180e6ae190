"""Usage, summed."""

from datetime import datetime, timedelta

from cortex_shared.clock import utc_now
from cortex_shared.errors import InvalidInput
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.usage import repository
from cortex_api.usage.schemas import GroupBy, UsageOut, UsageRow

_DAYS = 30


async def summed(
    session: AsyncSession,
    *,
    group_by: GroupBy,
    start: datetime | None,
    end: datetime | None,
    model: str | None,
    key: str | None,
) -> UsageOut:
    """Sums between two times; by default of the last 30 days, and of all models and keys.

    Raises InvalidInput.
    """
    end = end or utc_now()
    start = start or end - timedelta(days=_DAYS)
    if start >= end:
        raise InvalidInput(
            "from is not before to", code="usage.bad_range", field="from", remedy="swap from and to"
        )
    items = await repository.sums(session, group_by=group_by, start=start, end=end, model=model, key=key)
    if group_by != "day":
        items.sort(key=lambda row: (-row.total_tokens, -row.requests, row.group))
    total = UsageRow(
        group="total",
        requests=sum(row.requests for row in items),
        failed=sum(row.failed for row in items),
        prompt_tokens=sum(row.prompt_tokens for row in items),
        completion_tokens=sum(row.completion_tokens for row in items),
        cached_tokens=sum(row.cached_tokens for row in items),
        total_tokens=sum(row.total_tokens for row in items),
    )
    return UsageOut(group_by=group_by, start=start, end=end, items=items, total=total)
