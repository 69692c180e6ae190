"""/audit."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlmodel import col, select

from cortex_api.db.tables import Audit
from cortex_api.deps import Admin, Session
from cortex_api.rest.errors import error_responses
from cortex_api.rest.pages import INTEGER_MAX, Cursor, Limit, Page, decode_number, encode_cursor

router = APIRouter(prefix="/audit", tags=["audit"])

Filter = Annotated[str | None, Query(max_length=256)]


class AuditOut(BaseModel):
    """One change."""

    id: int
    at: datetime
    actor: str = Field(description="Name of the key that asked for it; `cortex`: nobody did.")
    action: str = Field(description="As the kind of its event.", examples=["model.started"])
    target: str = Field(description="What was changed.", examples=["model/7"])
    detail: dict[str, Any] = Field(description="More, never a secret.")


@router.get("", operation_id="listAudit", summary="Who changed what", responses=error_responses())
async def list_audit(
    session: Session,
    _caller: Admin,
    actor: Filter = None,
    action: Annotated[
        str | None, Query(max_length=64, description="`model.started`, or `model` for all of its kind.")
    ] = None,
    target: Filter = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[AuditOut]:
    """Changes, the newest first; kept for as long as the database."""
    before = decode_number(cursor)
    statement = select(Audit).order_by(col(Audit.id).desc()).limit(limit + 1)
    if before:
        statement = statement.where(col(Audit.id) < min(before, INTEGER_MAX))
    if actor is not None:
        statement = statement.where(Audit.actor == actor)
    if action is not None:
        starts = col(Audit.action).startswith(f"{action}.", autoescape=True)
        statement = statement.where((col(Audit.action) == action) | starts)
    if target is not None:
        statement = statement.where(Audit.target == target)
    rows = (await session.exec(statement)).all()
    items = [AuditOut.model_validate(row.model_dump()) for row in rows[:limit]]
    return Page(items=items, next_cursor=encode_cursor(items[-1].id) if len(rows) > limit else None)
