"""Events for people: the past as a list, the present as a stream."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cortex_shared.bus import Bus, Delivery, bounds, follow, read
from cortex_shared.contracts.events import STREAM, SUBJECTS, Event
from cortex_shared.errors import InvalidInput
from pydantic import Field

from cortex_api.rest.live import Write

_WINDOW = 256
_WINDOW_MAX = 2048
_LOOKED_AT_MAX = 20_000


class StoredEvent(Event):
    """An event and its place in the stream."""

    sequence: int = Field(description="Grows; give it as `since` or Last-Event-ID to go on after it.")


@dataclass(frozen=True)
class Wanted:
    """Which events; None: whatever."""

    model: str | None = None
    instance: str | None = None
    node: str | None = None
    kind: str | None = None
    since: datetime | None = None

    def __call__(self, event: Event) -> bool:
        """Whether an event is wanted. `model` is a name or an id; `kind` may be a first part of kinds."""
        if self.model is not None and self.model not in (event.model, str(event.model_id)):
            return False
        if self.kind is not None and event.kind != self.kind and not event.kind.startswith(f"{self.kind}."):
            return False
        if self.since is not None and event.at < self.since:
            return False
        return (self.instance is None or event.instance == self.instance) and (
            self.node is None or event.node == self.node
        )


def _stored(delivery: Delivery) -> StoredEvent | None:
    try:
        event = Event.decode(delivery.data)
    except InvalidInput:
        return None
    return StoredEvent(**event.model_dump(), sequence=delivery.sequence)


async def past(
    bus: Bus, wanted: Callable[[Event], bool], *, before: int, limit: int
) -> tuple[list[StoredEvent], int | None]:
    """The last `limit` wanted events before a sequence (0: up to now), oldest first; and before which
    sequence to ask for older ones, None when there are none. Looks at a bounded number. Raises Unavailable.
    """
    first, last = await bounds(bus, STREAM)
    end = min(last, before - 1) if before else last
    found: list[StoredEvent] = []
    window, looked = _WINDOW, 0
    while end >= first and looked < _LOOKED_AT_MAX:
        begin = max(first, end - window + 1)
        deliveries = await read(bus, STREAM, SUBJECTS, first=begin, last=end)
        looked += window
        for delivery in reversed(deliveries):
            event = _stored(delivery)
            if event is None or not wanted(event):
                continue
            found.append(event)
            if len(found) == limit:
                return found[::-1], event.sequence if event.sequence > first else None
        end = begin - 1
        window = min(_WINDOW_MAX, window * 2)
    return found[::-1], end + 1 if end >= first else None


def sse(event: StoredEvent) -> bytes:
    """An event as a server-sent event, whose id is its sequence."""
    return f"id: {event.sequence}\ndata: {event.model_dump_json()}\n\n".encode()


async def stream(bus: Bus, wanted: Wanted, write: Write, *, after: int | None) -> None:
    """Write wanted events as they come, from after a sequence (None: from now, or from `wanted.since`)."""
    await write(b"retry: 1000\n\n")
    if after is None and wanted.since is not None:
        events, _ = await past(bus, wanted, before=0, limit=_LOOKED_AT_MAX)
        _, after = await bounds(bus, STREAM)
        for event in events:
            await write(sse(event))
            after = max(after, event.sequence)

    async def hand_over(delivery: Delivery) -> None:
        event = _stored(delivery)
        if event is not None and wanted(event):
            await write(sse(event))

    await follow(bus, STREAM, SUBJECTS, hand_over, after=after)
