"""/usage."""

from typing import Annotated

from fastapi import APIRouter, Query

from cortex_api.deps import Session, Viewer
from cortex_api.rest.bodies import Moment
from cortex_api.rest.errors import error_responses
from cortex_api.usage import service
from cortex_api.usage.schemas import GroupBy, UsageOut

router = APIRouter(prefix="/usage", tags=["usage"])


@router.get("", operation_id="getUsage", summary="Sum up usage", responses=error_responses())
async def get_usage(
    session: Session,
    _caller: Viewer,
    group_by: Annotated[GroupBy, Query(description="What to sum by.")] = "model",
    start: Annotated[
        Moment | None, Query(alias="from", description="From this time on; default: 30 days before.")
    ] = None,
    end: Annotated[Moment | None, Query(alias="to", description="Before this time; default: now.")] = None,
    model: Annotated[
        str | None, Query(max_length=256, description="Only of this model: id, name or served name.")
    ] = None,
    key: Annotated[str | None, Query(max_length=128, description="Only of this key: id or name.")] = None,
) -> UsageOut:
    """Requests and tokens that gateways counted."""
    return await service.summed(session, group_by=group_by, start=start, end=end, model=model, key=key)
