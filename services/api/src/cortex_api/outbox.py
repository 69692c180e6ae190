"""Outbox: events of this process on their way to the stream; bounded, and never in a request's way."""

from collections import deque
from collections.abc import Iterable

import anyio
from cortex_shared.bus import Bus
from cortex_shared.bus.streams import bucket_stream, bucket_subject
from cortex_shared.contracts.events import Event, event_subject
from cortex_shared.contracts.observed import BUCKET as OBSERVED
from cortex_shared.contracts.verdicts import BUCKET as VERDICTS
from cortex_shared.errors import Unavailable
from cortex_shared.logs import get_logger

_log = get_logger("events")

_QUEUE_MAX = 4096
_RETRY_SECONDS = 1.0


class Outbox:
    """Takes events at once and appends them as soon as NATS takes them. `run` must be among the tasks."""

    def __init__(self, bus: Bus, process: str) -> None:
        """`process` is this process's name, a token of the events' subject."""
        self._bus = bus
        self._subject = event_subject("api", process)
        self._queue: deque[Event] = deque()
        self._forgotten: deque[str] = deque()
        self._added = anyio.Event()

    def add(self, events: Iterable[Event]) -> None:
        """Send these, in order. While NATS is away the oldest are lost beyond a bound; audit has them."""
        for event in events:
            if len(self._queue) >= _QUEUE_MAX:
                _log.warning("event.dropped", kind=self._queue.popleft().kind)
            self._queue.append(event)
        self._added.set()

    def forget_node(self, node: str) -> None:
        """Take what a deleted node last said out of NATS, so that it is not heard of again."""
        self._forgotten.append(node)
        self._added.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._added = anyio.Event()
            try:
                await self._send()
            except Unavailable:
                await anyio.sleep(_RETRY_SECONDS)
                continue
            await self._added.wait()

    async def _send(self) -> None:
        while self._forgotten:
            for bucket in (OBSERVED, VERDICTS):
                subject = bucket_subject(bucket, self._forgotten[0])
                await self._bus.purge(bucket_stream(bucket), subject)
            self._forgotten.popleft()
        while self._queue:
            event = self._queue[0]
            # The id makes a resent event the same event.
            await self._bus.append(self._subject, event, message_id=event.id)
            if self._queue and self._queue[0] is event:
                self._queue.popleft()
