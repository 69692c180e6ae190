"""Events of this node's instances, sent best effort: what cannot be sent soon is dropped, oldest first."""

from collections import deque
from collections.abc import Mapping
from typing import Literal

import anyio
from cortex_shared.bus import Bus
from cortex_shared.clock import utc_now
from cortex_shared.contracts.commands import Start
from cortex_shared.contracts.events import Event, event_subject
from cortex_shared.errors import CortexError
from cortex_shared.ids import new_instance_id

_QUEUE_MAX = 1000
_RETRY_SECONDS = 2.0


class Timeline:
    """`tell` never blocks and never fails."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus = bus
        self._node = node
        self._queue: deque[Event] = deque(maxlen=_QUEUE_MAX)
        self._hint = anyio.Event()

    def tell(
        self,
        kind: str,
        message: str,
        start: Start,
        *,
        level: Literal["info", "warning", "error"] = "info",
        data: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> None:
        """Something happened to an instance."""
        self._queue.append(
            Event(
                id=new_instance_id(),
                at=utc_now(),
                kind=kind,
                level=level,
                message=message,
                model_id=start.model_id,
                model=start.model,
                instance=start.instance,
                node=self._node,
                data={"generation": start.generation, **(data or {})},
            )
        )
        self._hint.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            if not self._queue:
                self._hint = anyio.Event()
                await self._hint.wait()
            event = self._queue[0]
            try:
                await self._bus.append(event_subject("node", self._node), event, message_id=event.id)
            except CortexError:
                await anyio.sleep(_RETRY_SECONDS)
                continue
            if self._queue and self._queue[0] is event:
                self._queue.popleft()
