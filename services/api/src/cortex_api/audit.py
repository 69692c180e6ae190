"""Record a change: an audit row in its transaction, and an event after the commit."""

from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.auth.principals import Principal
from cortex_api.db.tables import Audit
from cortex_api.hints import Hints


def record(
    session: AsyncSession,
    hints: Hints,
    principal: Principal,
    action: str,
    target: str,
    message: str,
    *,
    detail: dict[str, Any] | None = None,
    model_id: int | None = None,
    model: str | None = None,
    node: str | None = None,
) -> None:
    """`action` is the event's kind (`model.started`), `detail` is for audit alone. Never give it secrets."""
    session.add(Audit(actor=principal.name, action=action, target=target, detail=detail or {}))
    hints.event(action, message, actor=principal.name, model_id=model_id, model=model, node=node)
