"""Cap: one engine's slots, shared by all gateways: each leases what it uses. Pure.

Alone, a gateway has them all and asks nobody. With others it leases: what it uses, what stands in its line,
and one or a few to spare while less than half of all are taken, so that most requests need not wait for an
answer. What stands idle is given back a tenth of a second later. While requests wait elsewhere nobody keeps
more than a fair part of what comes free.
"""

from collections.abc import Sequence, Sized
from math import ceil
from typing import Protocol

from cortex_shared.limit_ledger import LeaseAsk, LeaseTold, Told

from cortex_gateway.limits import Sharing

# A gateway that has just come does not know yet what others have on an engine, nor they of it.
_NEW_SECONDS = 2.0
_SPARE_PARTS = 8


class Engine(Protocol):
    """An endpoint: what it has from here, what it may have, and what it has from others as last heard."""

    outstanding: int
    room: int
    elsewhere: int


class Served(Protocol):
    """A route."""

    @property
    def waiting(self) -> Sized:
        """Its line."""
        ...

    @property
    def endpoints(self) -> Sequence[Engine]:
        """Its engines."""
        ...

    def serve_waiting(self) -> None:
        """There may be room."""
        ...


class CapSettler(Protocol):
    """Who takes what is to be settled to the store."""

    def soon(self, limits: "Cap") -> None:
        """Something has changed."""
        ...

    def now(self, limits: "Cap") -> None:
        """Something is wanted."""
        ...


class Cap:
    """Sets `room` of one engine. `limit` is over all gateways, above 0."""

    __slots__ = (
        "_before",
        "_engine",
        "_fair",
        "_gateways",
        "_held",
        "_new_until",
        "_route",
        "_settler",
        "_sharing",
        "_total",
        "calm",
        "dirty",
        "limit",
        "name",
    )

    def __init__(
        self, name: str, engine: Engine, route: Served, sharing: Sharing, settler: CapSettler
    ) -> None:
        self.name = name
        self.limit = 0
        self.dirty = False
        self.calm = False
        self._engine = engine
        self._route = route
        self._sharing = sharing
        self._settler = settler
        self._gateways = 1
        self._held = 0
        self._before = 0
        self._total = 0
        self._fair = 0
        # None: not known yet, since nobody has said what time it is.
        self._new_until: float | None = None

    # From the route.

    def set_limit(self, limit: int) -> None:
        """What the policy says now."""
        if limit != self.limit:
            self.limit = self._fair = limit
            self.regauge()

    def released(self) -> None:
        """A request has ended there."""
        if not self.dirty and self._gateways > 1:
            self.dirty = True
            self._settler.soon(self)

    def wanted(self) -> None:
        """A request stands in line."""
        if self._short:
            self._settler.now(self)

    # From the limiter.

    @property
    def waits(self) -> bool:
        """Requests wait in the route's line, not here."""
        return False

    @property
    def unsettled(self) -> bool:
        """Whether other slots are held than are in use, or more are wanted."""
        if self._gateways == 1:
            return self._held > 0
        return self._held != self._engine.outstanding or self._short

    @property
    def leased(self) -> bool:
        """Whether it holds what expires unless it is renewed."""
        return self._held > 0

    def ask(self, now: float) -> list[LeaseAsk]:
        """What to send; then `told` or `failed` is called."""
        used, waiting = self._engine.outstanding, len(self._route.waiting)
        if self._new_until is None:
            self._new_until = now + _NEW_SECONDS
        if self._gateways == 1:
            keep = want = 0
        else:
            spare = self._spare() if waiting or any(each.outstanding for each in self._route.endpoints) else 0
            keep = max(used, min(self._held, self._fair, max(self._before, used + spare)))
            line = ceil(waiting / max(1, len(self._route.endpoints)))
            want = max(0, min(self.limit, used + line + spare) - keep)
        self._before = used
        self._held = keep
        self._gauge(now)
        return [LeaseAsk(self.name, self.limit, keep, want)]

    def told(self, told: Sequence[Told], now: float) -> None:
        """The answer."""
        answer = told[0]
        assert isinstance(answer, LeaseTold)
        self._held, self._total, self._fair = answer
        self.calm = 2 * self._total <= self.limit and not self._route.waiting
        self._engine.elsewhere = answer.total - answer.held if self._gateways > 1 else 0
        self._gauge(now)
        if self._route.waiting:
            self._route.serve_waiting()

    def failed(self) -> None:
        """There was no answer."""

    def decide_alone(self, now: float) -> None:
        """Nothing waits here."""

    def restore(self) -> None:
        """The store was emptied: what is held is told with the next ask."""

    def regauge(self) -> None:
        """There are more gateways, or fewer, or the store has gone or come."""
        sharing = self._sharing
        if sharing.gateways > self._gateways:
            self._new_until = None
        self._gateways = sharing.gateways if sharing.shared else 1
        if self._gateways == 1:
            self._engine.elsewhere = 0
        self._gauge(None)
        if self._engine.outstanding or self._held or self._route.waiting:
            self._settler.now(self)
        if self._route.waiting:
            self._route.serve_waiting()

    @property
    def _short(self) -> bool:
        if self._gateways == 1 or not self._route.waiting:
            return False
        return self._engine.outstanding >= self._engine.room < self.limit

    def _spare(self) -> int:
        if 2 * self._total > self.limit:
            return 0
        return max(1, self.limit // (_SPARE_PARTS * self._gateways))

    def _gauge(self, now: float | None) -> None:
        # How many the engine may have from here; `now` None: whenever it is.
        if self._gateways == 1:
            self._engine.room = self.limit
            return
        share = self._sharing.share(self.limit)
        if self._sharing.local:
            self._engine.room = share
            return
        room = min(self._held, self._fair)
        if self._new_until is None or now is None or now < self._new_until:
            room = min(room, share)
        self._engine.room = room
