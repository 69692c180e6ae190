"""Event: something that happened, for timelines, alerts and audit."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from cortex_shared.contracts.base import Message

STREAM = "CORTEX_EVENTS"
SUBJECTS = "cortex.v1.events.>"


def event_subject(source: str, name: str) -> str:
    """Subject of events of a source: `node` with the node's id, `api` or `monitor` with the process's."""
    return f"cortex.v1.events.{source}.{name}"


class Event(Message):
    """`kind` is a dotted noun and a past participle: `instance.ready`, `model.created`, `node.lost`."""

    type: Literal["cortex.event.v1"] = "cortex.event.v1"
    id: str
    at: datetime
    kind: str
    level: Literal["info", "warning", "error"] = "info"
    message: str
    actor: str | None = None
    model_id: int | None = None
    model: str | None = None
    instance: str | None = None
    node: str | None = None
    data: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict[str, str | int | float | bool | None]
    )
