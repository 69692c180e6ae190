"""Tells CORTEX_EVENTS what happened to nodes and routes; bounded, so that flapping cannot flood it."""

import secrets
import time
from collections import deque
from typing import Literal

import anyio
from cortex_shared.bus import Bus
from cortex_shared.clock import utc_now
from cortex_shared.contracts.events import Event, event_subject
from cortex_shared.contracts.external import EndpointObserved
from cortex_shared.contracts.verdicts import Verdict
from cortex_shared.errors import Unavailable
from cortex_shared.logs import get_logger

from cortex_monitor.liveness import Judgement

_log = get_logger("events")

type _Level = Literal["info", "warning", "error"]

_WORDS: dict[Verdict, tuple[str, _Level]] = {
    "live": ("is live again", "info"),
    "silent": ("is silent", "warning"),
    "lost": ("is lost", "error"),
    "frozen": ("is silent with most others", "error"),
}
_QUEUE_MAX = 256
_ROUTE_EVENTS_PER_MINUTE_MAX = 60


class EventLog:
    """Queues events and sends them in order; the oldest is dropped when the queue is full."""

    def __init__(self, bus: Bus, *, name: str) -> None:
        self._bus = bus
        self._subject = event_subject("monitor", name)
        self._queue: deque[Event] = deque(maxlen=_QUEUE_MAX)
        self._queued = anyio.Event()
        self._window = 0.0
        self._in_window = 0

    def add(self, event: Event) -> None:
        """Queue an event."""
        if len(self._queue) == _QUEUE_MAX:
            _log.warning("event.dropped", kind=self._queue[0].kind)
        self._queue.append(event)
        self._queued.set()

    def add_route(self, event: Event) -> None:
        """Queue an event of a route, unless this minute has had too many."""
        now = time.monotonic()
        if now - self._window > 60:
            self._window, self._in_window = now, 0
        self._in_window += 1
        if self._in_window <= _ROUTE_EVENTS_PER_MINUTE_MAX:
            self.add(event)

    async def run(self) -> None:
        """Send until cancelled; NATS being away is waited out."""
        while True:
            await self._queued.wait()
            self._queued = anyio.Event()
            while self._queue:
                event = self._queue[0]
                try:
                    await self._bus.append(self._subject, event, message_id=event.id)
                except Unavailable:
                    await anyio.sleep(1)
                    continue
                if self._queue and self._queue[0] is event:
                    self._queue.popleft()


def verdict_event(node: str, judgement: Judgement) -> Event:
    """A node is judged otherwise than before."""
    words, level = _WORDS[judgement.verdict]
    because = f": {', '.join(judgement.evidence)}" if judgement.evidence else ""
    return Event(
        id=_event_id(),
        at=utc_now(),
        kind=f"node.{judgement.verdict}",
        level=level,
        message=f"node {node} {words}{because}",
        node=node,
    )


def fleet_event(frozen: int, nodes: int) -> Event:
    """Many nodes fell silent together, or that is over (`frozen` 0)."""
    if frozen:
        message = (
            f"{frozen} of {nodes} nodes fell silent together: their endpoints stay routed and nothing is "
            "evicted; look at the network and at NATS"
        )
        return Event(id=_event_id(), at=utc_now(), kind="fleet.frozen", level="error", message=message)
    message = "the nodes that had fallen silent together are judged one by one again"
    return Event(id=_event_id(), at=utc_now(), kind="fleet.thawed", message=message)


def route_event(name: str, model_id: int, *, state: str, endpoints: int) -> Event:
    """A route's state or endpoints changed."""
    return Event(
        id=_event_id(),
        at=utc_now(),
        kind="route.changed",
        message=f"{name}: {state}, {endpoints} endpoint{'' if endpoints == 1 else 's'}",
        model_id=model_id,
        data={"route": name, "state": state, "endpoints": endpoints},
    )


def endpoint_event(model_id: int, endpoint: EndpointObserved) -> Event:
    """An external server is otherwise than before."""
    because = "" if endpoint.reason is None else f": {endpoint.reason.message}"
    return Event(
        id=_event_id(),
        at=utc_now(),
        kind=f"endpoint.{endpoint.state}",
        level="warning" if endpoint.state == "failed" else "info",
        message=f"{endpoint.url} is {endpoint.state}{because}",
        model_id=model_id,
        data={"endpoint": endpoint.id, "url": endpoint.url, "state": endpoint.state},
    )


def _event_id() -> str:
    return f"evt_{secrets.token_hex(12)}"
