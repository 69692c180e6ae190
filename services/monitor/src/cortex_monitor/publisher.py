"""Writes the routing table into Redis: when routes changed, and when Redis lost it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from cortex_shared.clock import utc_now
from cortex_shared.contracts.routes import Route, RoutingTable
from cortex_shared.errors import Conflict, InvalidInput, Unavailable
from cortex_shared.logs import get_logger
from cortex_shared.routing_store import RoutingStore

from cortex_monitor.lease import Lease

_log = get_logger("publisher")

CHECK_SECONDS = 1.0
_RETRY_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Offer:
    """Routes, and the manifest that they follow; `since` is when their cause was heard (monotonic)."""

    routes: list[Route]
    fleet: str | None
    epoch: int
    since: float


class Publisher:
    """Keeps Redis at the newest offer while the lease is held. `run` must be a task.

    `on_adopt` gets the table found in Redis (None: there is none) each time a new term begins; nothing is
    written under the term before the next offer. `on_write` gets the routes before and the offer written.
    """

    def __init__(
        self,
        store: RoutingStore,
        lease: Lease,
        *,
        on_adopt: Callable[[RoutingTable | None], None],
        on_write: Callable[[list[Route], Offer], None],
    ) -> None:
        self._store = store
        self._lease = lease
        self._on_adopt = on_adopt
        self._on_write = on_write
        self._offer: Offer | None = None
        self._written: list[Route] | None = None
        self._stands: tuple[int, int] | None = None
        self._term = 0
        self._version = 0
        self._checked_at = 0.0
        self._news = anyio.Event()
        self.problem: str | None = None
        lease.on_change(self._wake)

    @property
    def stands(self) -> tuple[int, int] | None:
        """(term, version) of the table that is in Redis, as last seen."""
        return self._stands

    def offer(self, offer: Offer) -> None:
        """Have these routes written; a newer offer replaces one that still waits."""
        self._offer = offer
        if offer.routes != self._written:
            self._wake()

    async def run(self) -> None:
        """Write until cancelled; waits out Redis' absence."""
        while True:
            with anyio.move_on_after(max(0, self._checked_at + CHECK_SECONDS - time.monotonic())):
                await self._news.wait()
            self._news = anyio.Event()
            try:
                await self._step()
                self.problem = None
            except (Unavailable, Conflict) as error:
                if self.problem is None:
                    _log.warning("publisher.waits", error=error.message)
                self.problem = error.message
                self._checked_at = 0.0
                await anyio.sleep(_RETRY_SECONDS)

    def _wake(self) -> None:
        self._news.set()

    async def _step(self) -> None:
        now = time.monotonic()
        due = now - self._checked_at >= CHECK_SECONDS
        if not self._lease.held:
            self._term = 0
            if due:
                self._stands = await self._store.version()
                self._checked_at = now
            return
        if self._term != self._lease.term:
            await self._take_term()
        elif due and await self._was_disturbed():
            return
        if due:
            self._checked_at = now
        if self._offer is not None and self._offer.routes != self._written:
            await self._write(self._offer)

    async def _take_term(self) -> None:
        table = await self._read()
        self._stands = None if table is None else (table.term, table.version)
        self._written = None if table is None else table.routes
        self._term, self._version = self._lease.term, 0
        self._offer = None
        self._on_adopt(table)

    async def _was_disturbed(self) -> bool:
        """Look whether Redis still holds what it held; True if a later term must be taken first."""
        stands = await self._store.version()
        if stands == self._stands:
            return False
        _log.warning("table.disturbed", found=stands, expected=self._stands)
        self._stands = stands
        if stands is not None and stands[0] > self._term:
            await self._lease.outbid(stands[0])
            return True
        self._written = None
        return False

    async def _write(self, offer: Offer) -> None:
        stands = self._stands
        # Of a Redis that came back empty, too, it only grows: gateways pass over a table whose number they
        # have seen.
        stood = stands[1] if stands is not None and stands[0] == self._term else 0
        version = self._version = max(stood, self._version) + 1
        table = RoutingTable(
            term=self._term,
            version=version,
            written_at=utc_now(),
            routes=offer.routes,
            fleet=offer.fleet,
            epoch=offer.epoch,
        )
        if not await self._store.replace(table):
            self._checked_at = 0.0  # another table came between: look at once
            self._wake()
            return
        before = self._written or []
        self._stands, self._written = (table.term, table.version), offer.routes
        self._on_write(before, offer)

    async def _read(self) -> RoutingTable | None:
        try:
            return await self._store.read()
        except InvalidInput as error:
            _log.error("table.unreadable", error=error.message)
            return None
