"""Tells the API how external servers are: a key per model in NATS, on change and now and then."""

import time
from collections.abc import Callable
from datetime import datetime

from cortex_shared.bus import Bus, Mirror
from cortex_shared.bus.streams import bucket_stream, bucket_subject
from cortex_shared.clock import utc_now
from cortex_shared.contracts.external import BUCKET, EndpointObserved, ExternalObserved
from cortex_shared.errors import Conflict, InvalidInput
from cortex_shared.logs import get_logger
from cortex_shared.reconcile import Again, Loop

from cortex_monitor.lease import Lease
from cortex_monitor.state import FleetState

_log = get_logger("external_writer")

# When nothing changed but times: how old what is told may become.
_REFRESH_SECONDS = 15.0

type OnChange = Callable[[ExternalObserved, ExternalObserved | None], None]


class ExternalWriter:
    """Compares what is found with what NATS holds and mends the difference, while the lease is held."""

    def __init__(
        self, bus: Bus, mirror: Mirror, state: FleetState, lease: Lease, *, on_change: OnChange
    ) -> None:
        """`on_change` gets what was written, and what stood there before."""
        self._bus = bus
        self._mirror = mirror
        self._state = state
        self._lease = lease
        self._on_change = on_change
        self._loop: Loop[int] = Loop(self._look, workers_max=4)
        self._found: dict[int, ExternalObserved] = {}
        mirror.on_change(self._noticed)

    async def run(self) -> None:
        """Write until cancelled."""
        await self._loop.run()

    def stored(self) -> list[ExternalObserved]:
        """What NATS holds, as last read."""
        found = [_decode(entry.data) for entry in self._mirror.entries.values()]
        return [observed for observed in found if observed is not None]

    def tell(self, now: float) -> None:
        """Look which models have news; cheap, and to be called often."""
        self._found = {
            observed.model_id: observed for observed in self._state.external_observed(now, utc_now())
        }
        for model_id, observed in self._found.items():
            if _differs(self._stored(model_id), observed):
                self._loop.hint(model_id)
        if self._state.manifest is not None:
            for key in self._mirror.entries:
                if key.isdecimal() and int(key) not in self._found:
                    self._loop.hint(int(key))

    def _stored(self, model_id: int) -> ExternalObserved | None:
        entry = self._mirror.entries.get(str(model_id))
        return None if entry is None else _decode(entry.data)

    def _noticed(self, key: str | None) -> None:
        if key is None:
            self.tell(time.monotonic())

    async def _look(self, model_id: int) -> Again | None:
        if not self._lease.held:
            return None
        if not self._mirror.synced:
            return Again(1)
        key = str(model_id)
        entry = self._mirror.entries.get(key)
        before = self._stored(model_id)
        found = self._found.get(model_id)
        gone = found is None
        if found is None:
            if entry is None:
                return None
            found = ExternalObserved(model_id=model_id, endpoints=[])
        elif not _differs(before, found):
            return None
        try:
            # Fenced: a deposed monitor has not seen the newest sequence, and is refused.
            await self._bus.put(BUCKET, key, found, expected_sequence=0 if entry is None else entry.sequence)
        except Conflict:
            return Again(0.5)
        if gone:
            await self._bus.purge(bucket_stream(BUCKET), bucket_subject(BUCKET, key))
            # A purge is told to nobody, so the mirror would keep it for ever.
            self._mirror.entries.pop(key, None)
        self._on_change(found, before)
        return None


def _differs(stored: ExternalObserved | None, found: ExternalObserved) -> bool:
    if stored is None or [_plain(e) for e in stored.endpoints] != [_plain(e) for e in found.endpoints]:
        return True
    return any(
        _is_older(before.checked_at, after.checked_at)
        for before, after in zip(stored.endpoints, found.endpoints, strict=True)
    )


def _plain(endpoint: EndpointObserved) -> tuple[object, ...]:
    return endpoint.id, endpoint.url, endpoint.state, endpoint.reason


def _is_older(before: datetime | None, after: datetime | None) -> bool:
    if before is None or after is None:
        return before is not after
    return abs((after - before).total_seconds()) >= _REFRESH_SECONDS


def _decode(data: bytes) -> ExternalObserved | None:
    try:
        return ExternalObserved.decode(data)
    except InvalidInput as error:
        _log.warning("external.unreadable", error=error.message)
        return None
