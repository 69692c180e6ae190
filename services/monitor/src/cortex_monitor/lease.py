"""The monitors' lease: one at a time may write. Kept in NATS, compared and set by sequence."""

import time
from collections.abc import Callable
from datetime import timedelta

import anyio
from cortex_shared.bus import Bus, Mirror
from cortex_shared.clock import utc_now
from cortex_shared.contracts.verdicts import BUCKET, LEASE, MonitorLease
from cortex_shared.errors import Conflict, InvalidInput, Unavailable
from cortex_shared.logs import get_logger
from cortex_shared.routing_store import RoutingStore

from cortex_monitor.settings import LeaseSettings

_log = get_logger("lease")


class Lease:
    """`held` and `term` say whether this process may write, and under which term. `run` must be a task.

    A lease has expired when its key has not changed for a while by the follower's own clock, so that clocks
    of hosts need not agree. While NATS is away nobody can take it over, and the holder goes on: Redis refuses
    a deposed one by its term.
    """

    def __init__(
        self, bus: Bus, verdicts: Mirror, store: RoutingStore, settings: LeaseSettings, *, name: str
    ) -> None:
        self._bus = bus
        self._verdicts = verdicts
        self._store = store
        self._settings = settings
        self._name = name
        self._sequence = 0
        self._seen = (0, 0.0)
        self._look = anyio.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._released = False
        self.held = False
        self.term = 0
        verdicts.on_change(self._noticed)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back when it was taken, lost, or its term grew."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Renew it, or watch over it, until cancelled."""
        await self._verdicts.wait_synced()
        while not self._released:
            self._look = anyio.Event()
            try:
                wait = await (self._renew() if self.held else self._watch())
            except Unavailable as error:
                _log.debug("lease.waits", error=error.message)
                wait = self._settings.renew_seconds
            with anyio.move_on_after(wait):
                await self._look.wait()

    async def outbid(self, term: int) -> None:
        """Redis holds a table of a later term though the lease is ours: go beyond it. Raises Unavailable."""
        if self.held and term >= self.term:
            await self._write(term + 1, self._sequence)

    async def release(self) -> None:
        """Give it up, so that another takes it at once; for the end of the process."""
        self._released = True
        self._look.set()
        if self.held:
            self.held = False
            with anyio.move_on_after(1):
                try:
                    lease = MonitorLease(holder="", term=self.term, expires_at=utc_now())
                    await self._bus.put(BUCKET, LEASE, lease, expected_sequence=self._sequence)
                except (Conflict, Unavailable) as error:
                    _log.info("lease.not_released", error=error.message)

    def _noticed(self, key: str | None) -> None:
        if self.held or key not in (None, LEASE):
            return
        if key is None:
            # Read anew after an absence of NATS, in which the holder could not renew, either.
            self._seen = (0, 0.0)
        self._look.set()

    async def _renew(self) -> float:
        try:
            await self._write(self.term, self._sequence)
        except Conflict:
            await self._settle()
        return self._settings.renew_seconds

    async def _settle(self) -> None:
        """The key is not as we left it: NATS came back empty, an answer was lost, or another has it."""
        found = await self._bus.get(BUCKET, LEASE)
        if found is None:
            self._sequence = 0
            await self._try_to_write(self.term, 0)
            return
        lease = _decode(found[0])
        if lease.holder == self._name:
            self._sequence = found[1]
            return
        _log.warning("lease.lost", to=lease.holder, term=lease.term)
        self.held = False
        self._seen = (found[1], time.monotonic())
        self._tell()

    async def _watch(self) -> float:
        if not self._verdicts.synced:
            return self._settings.renew_seconds
        now = time.monotonic()
        entry = self._verdicts.entries.get(LEASE)
        lease = None if entry is None else _decode(entry.data)
        sequence = 0 if entry is None else entry.sequence
        if sequence != self._seen[0]:
            self._seen = (sequence, now)
        expires_in = self._seen[1] + self._settings.expire_seconds - now
        if lease is not None and lease.holder not in ("", self._name) and expires_in > 0:
            return max(0.02, expires_in)
        term = 1 + max(0 if lease is None else lease.term, await self._fence_term())
        if not await self._try_to_write(term, sequence):
            return 0.2
        _log.info("lease.taken", term=term)
        return self._settings.renew_seconds

    async def _fence_term(self) -> int:
        try:
            stands = await self._store.version()
        except Unavailable:
            return 0  # the publisher outbids what it finds when Redis is back
        return 0 if stands is None else stands[0]

    async def _try_to_write(self, term: int, sequence: int) -> bool:
        try:
            await self._write(term, sequence)
        except Conflict:
            return False
        return True

    async def _write(self, term: int, sequence: int) -> None:
        expires_at = utc_now() + timedelta(seconds=self._settings.expire_seconds)
        lease = MonitorLease(holder=self._name, term=term, expires_at=expires_at)
        self._sequence = await self._bus.put(BUCKET, LEASE, lease, expected_sequence=sequence)
        changed = not self.held or self.term != term
        self.held, self.term = True, term
        if changed:
            self._tell()

    def _tell(self) -> None:
        for callback in self._callbacks:
            callback()


def _decode(data: bytes) -> MonitorLease:
    try:
        return MonitorLease.decode(data)
    except InvalidInput:
        # Unreadable is as good as free; the term is then found from the fence in Redis.
        return MonitorLease(holder="", term=0, expires_at=utc_now())
