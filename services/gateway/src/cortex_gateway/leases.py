"""Limiter: settles what this gateway has used of limits with all others, behind the requests."""

import asyncio
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from itertools import batched
from typing import Protocol

from cortex_shared.contracts.keys import KeyRecord
from cortex_shared.errors import Unavailable
from cortex_shared.limit_ledger import BATCH_MAX, Ask, LimitStore, Settled, Told
from cortex_shared.logs import get_logger

from cortex_gateway.balance import SharedSlots
from cortex_gateway.caps import Cap, Engine, Served
from cortex_gateway.families import Family, counter, gauge
from cortex_gateway.key_limits import KeyLimits, limited
from cortex_gateway.limits import CALM_SECONDS, Sharing
from cortex_gateway.settings import LimitSettings

_log = get_logger("leases")

_TICK_SECONDS = 0.1
# Leases expire after 10 s: two renewals may be lost.
_RENEW_SECONDS = 3.0
_ANSWER_SECONDS = 1.0
# A store that was just emptied is not believed until all gateways have had time to tell it what they used:
# each looks at it once a second.
_YOUNG_SECONDS = 3.0
_OFFSET_SECONDS = 0.25
# A key asks five things at most.
_TOGETHER_MAX = BATCH_MAX // 5


class Capped(Engine, Protocol):
    """An endpoint that can have a cap."""

    cap: SharedSlots | None


class Settling(Protocol):
    """Something whose use is settled with the store."""

    dirty: bool
    calm: bool
    """Whether what is used is far from all limits."""

    @property
    def waits(self) -> bool:
        """Whether requests wait for the store."""
        ...

    @property
    def unsettled(self) -> bool:
        """Whether there is anything to tell the store, or to ask it."""
        ...

    @property
    def leased(self) -> bool:
        """Whether it holds what expires unless it is renewed."""
        ...

    def ask(self, now: float) -> Sequence[Ask]:
        """What to send; then `told` or `failed` is called, before `ask` is again."""
        ...

    def told(self, told: Sequence[Told], now: float) -> None:
        """The answers, one for each ask."""
        ...

    def failed(self) -> None:
        """There was no answer."""
        ...

    def decide_alone(self, now: float) -> None:
        """Requests that wait have waited long enough."""
        ...

    def restore(self) -> None:
        """The store was emptied: what was used here is to be told anew."""
        ...

    def regauge(self) -> None:
        """The number of gateways has changed."""
        ...


class Limiter:
    """The limits of all keys of the ring. Without a store they hold for this process alone."""

    def __init__(
        self,
        settings: LimitSettings,
        loop: asyncio.AbstractEventLoop,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`wall`: seconds of the epoch."""
        self._settings = settings
        self._loop = loop
        self._wall = wall
        self._store: LimitStore | None = None
        self.sharing = Sharing(shared=False)
        self.sharing.offset = wall() - loop.time()
        self._keys: dict[int, KeyLimits] = {}
        self._caps: dict[Capped, Cap] = {}
        # What is to be settled (True: in any case), whose requests wait, what is leased: bounded by the keys.
        self._dirty: dict[Settling, bool] = {}
        self._waiting: dict[Settling, None] = {}
        self._leased: dict[Settling, None] = {}
        self._some = asyncio.Event()
        # Held while the store is asked: nobody is to ask for the same limits meanwhile.
        self._asking = asyncio.Lock()
        self._tick: asyncio.TimerHandle | None = None
        self._tick_calm = False
        self._renewal: asyncio.TimerHandle | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._epoch = 0.0
        self._away = True
        self._settlements = 0
        self._waits = 0

    def share(self, store: LimitStore) -> None:
        """Share the limits by this store: `run` and `look` must be called from now on."""
        self._store = store
        self.sharing.shared = True
        self.sharing.gateways = self._settings.gateways_min

    def families(self) -> Iterable[Family]:
        """What is shown at /metrics."""
        shared = gauge(
            "cortex_gateway_limits_shared",
            "1: limits are settled with the other gateways; 0: what counts is this gateway's own share.",
            over="min",
        )
        shared.add((), not self.sharing.local)
        gateways = gauge("cortex_gateway_limits_gateways", "Gateways that share the limits.", over="max")
        gateways.add((), self.sharing.gateways)
        settlements = counter("cortex_gateway_limits_settlements", "How often limits were settled.")
        settlements.add((), self._settlements)
        waits = counter(
            "cortex_gateway_limits_waits", "Requests that waited to hear whether their key has anything left."
        )
        waits.add((), self._waits)
        capped = gauge(
            "cortex_gateway_limits_capped_endpoints",
            "Endpoints whose slots are shared with the other gateways.",
            over="max",
        )
        capped.add((), len(self._caps))
        yield from (shared, gateways, settlements, waits, capped)

    # Keys.

    def take(self, records: Iterable[KeyRecord]) -> Mapping[int, KeyLimits]:
        """The limits of each key of a new ring that has any; of keys that stay, what was used stays used."""
        found: dict[int, KeyLimits] = {}
        for record in records:
            if not limited(record):
                continue
            limits = found.get(record.id) or self._keys.get(record.id)
            if limits is None:
                waiting_max = self._settings.waiting_max
                limits = KeyLimits(record, self.sharing, self, wall=self._wall, waiting_max=waiting_max)
            else:
                limits.update(record)
            found[record.id] = limits
        self._keys = found
        return found

    # Engines.

    def cap(self, name: str, endpoint: Capped, route: Served, concurrency: int) -> None:
        """Share the slots of an endpoint with other gateways; `concurrency` 0: it has no cap."""
        if not concurrency or not self.sharing.shared:
            self.uncap(endpoint)
            return
        cap = self._caps.get(endpoint)
        if cap is None:
            cap = self._caps[endpoint] = Cap(f"slots:{name}", endpoint, route, self.sharing, self)
            endpoint.cap = cap
        cap.set_limit(concurrency)

    def uncap(self, endpoint: Capped) -> None:
        """The endpoint has no cap any more, or has left; what it holds is kept until its requests end."""
        self._caps.pop(endpoint, None)
        endpoint.cap = None

    # From requests.

    def now(self, limits: Settling) -> None:
        """Something is wanted."""
        if self.sharing.shared:
            limits.dirty = True
            self._dirty[limits] = True
            self._some.set()

    def soon(self, limits: Settling) -> None:
        """Something has changed."""
        if self.sharing.shared:
            self._dirty.setdefault(limits, False)
            if self._tick is not None and self._tick_calm and not limits.calm:
                self._tick.cancel()
                self._tick = None
            if self._tick is None and not self._away:
                self._tick_calm = limits.calm
                seconds = CALM_SECONDS if limits.calm else _TICK_SECONDS
                self._tick = self._loop.call_later(seconds, self._ticked)

    def at_once(self, limits: Settling) -> None:
        """A request waits."""
        self._waits += 1
        self._waiting[limits] = None
        self.now(limits)
        if self._overdue is None:
            self._overdue = self._loop.call_later(self._settings.wait_seconds, self._decide_alone)

    def _ticked(self) -> None:
        self._tick = None
        self._some.set()

    def _decide_alone(self) -> None:
        # The store takes too long, or is away.
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        waiting, self._waiting = self._waiting, {}
        now = self._loop.time()
        for limits in waiting:
            limits.decide_alone(now)

    def _renew(self) -> None:
        self._renewal = None
        leased, self._leased = self._leased, {}
        for limits in leased:
            if limits.leased:
                self._dirty[limits] = True
                self._some.set()

    # The store.

    async def run(self) -> None:
        """Settle whatever there is to settle, until cancelled. Sleeps while there is nothing."""
        while True:
            await self._some.wait()
            self._some.clear()
            async with self._asking:
                if self._away:
                    continue  # until `look` finds it again
                for batch in batched(self._due(), _TOGETHER_MAX):
                    await self._settle(batch)

    def _due(self) -> list[Settling]:
        # All that has something to settle, which is then to be asked.
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        due: list[Settling] = []
        for limits, must in self._dirty.items():
            limits.dirty = False
            if must or limits.unsettled:
                due.append(limits)
        self._dirty = {}
        return due

    async def look(self, keys: Sequence[str] = ()) -> Sequence[bytes | None] | None:
        """Say that this gateway is there and see who else is; to be called about once a second.

        What is to be settled goes along. Returns what the store holds under `keys`, None if it is away.
        """
        if self._store is None:
            return None
        if self._asking.locked():
            return await self._look(self._store, (), keys)
        async with self._asking:
            # What is to be settled soon; leave what is too much for one question.
            along = not self._away and len(self._dirty) <= _TOGETHER_MAX
            return await self._look(self._store, self._due() if along else (), keys)

    async def _look(
        self, store: LimitStore, batch: Sequence[Settling], keys: Sequence[str]
    ) -> Sequence[bytes | None] | None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                with self._asks(batch) as asked:
                    seen = await store.look([ask for asks in asked for ask in asks], keys)
        except (Unavailable, TimeoutError) as error:
            self._lost(error)
            if batch:
                self._decide_alone()
            return None
        sharing = self.sharing
        count = max(1, seen.gateways)
        if seen.now < seen.epoch + _YOUNG_SECONDS:
            # It was emptied, and not all have told it that they are there: no share grows by that.
            count = max(count, sharing.gateways)
        changed = sharing.gateways != count
        sharing.gateways, sharing.place = count, seen.place
        if changed:
            _log.info("limits.gateways", count=count)
            self._regauge()
        if seen.settled is not None:
            self._tell(batch, asked, seen.settled)
        self._heard(seen.now, seen.epoch)
        return seen.values

    async def leave(self) -> None:
        """This gateway ends: what it used is told, what it leased is free, and the others' shares grow."""
        if self._store is None or self._away:
            return
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                # Twice: the first time slots are kept that were in use a moment ago.
                for _ in range(2):
                    for batch in batched({**self._leased, **self._dirty}, _TOGETHER_MAX):
                        await self._exchange(batch)
                await self._store.leave()
        except (Unavailable, TimeoutError) as error:
            _log.warning("limits.left_unsettled", error=str(error) or type(error).__name__)

    async def _settle(self, batch: Sequence[Settling]) -> None:
        if self._away:
            self._put_off(batch)
        else:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await self._exchange(batch)
            except (Unavailable, TimeoutError) as error:
                self._lost(error)
            else:
                return
        self._decide_alone()

    def _put_off(self, batch: Sequence[Settling]) -> None:
        # Until soon, or until the store is there again.
        for limits in batch:
            limits.dirty = True
            self._dirty[limits] = True
            self.soon(limits)

    async def _exchange(self, batch: Sequence[Settling]) -> None:
        assert self._store is not None
        with self._asks(batch) as asked:
            settled = await self._store.settle([ask for asks in asked for ask in asks])
        self._tell(batch, asked, settled)

    @contextmanager
    def _asks(self, batch: Sequence[Settling]) -> Generator[list[Sequence[Ask]]]:
        # What each of these asks the store, whose answer the body waits for. Without one, also because
        # whoever waits is cancelled, it is to be asked again.
        now = self._loop.time()
        asked = [limits.ask(now) for limits in batch]
        try:
            yield asked
        except BaseException:
            for limits in batch:
                limits.failed()
            self._put_off(batch)
            raise

    def _tell(self, batch: Sequence[Settling], asked: list[Sequence[Ask]], settled: Settled) -> None:
        self._settlements += 1
        self._heard(settled.now, settled.epoch)
        now = self._loop.time()
        at = 0
        for limits, asks in zip(batch, asked, strict=True):
            if settled.told is None:
                limits.failed()
                limits.restore()
                self._dirty[limits] = limits.dirty = True
                self._some.set()
                continue
            self._waiting.pop(limits, None)
            limits.told(settled.told[at : at + len(asks)], now)
            at += len(asks)
            self._after(limits)
        if self._overdue is not None and not self._waiting:
            self._overdue.cancel()
            self._overdue = None

    def _after(self, limits: Settling) -> None:
        if limits.waits:
            self.at_once(limits)
        elif limits.unsettled and not limits.dirty:
            limits.dirty = True
            self.soon(limits)
        if limits.leased:
            self._leased[limits] = None
            if self._renewal is None:
                self._renewal = self._loop.call_later(_RENEW_SECONDS, self._renew)

    def _heard(self, now: float, epoch: float) -> None:
        sharing = self.sharing
        offset = now - self._loop.time()
        if abs(offset - sharing.offset) > _OFFSET_SECONDS:
            sharing.offset = offset
        if epoch != self._epoch:
            self._epoch = epoch
            self._some.set()
            for limits in self._all():
                limits.restore()
                if limits.unsettled or limits.leased:
                    self._dirty[limits] = limits.dirty = True
        if self._away:
            _log.info("limits.shared", gateways=sharing.gateways)
            self._away = False
            self._some.set()
        self._believe(now >= epoch + _YOUNG_SECONDS)

    def _believe(self, shared: bool) -> None:
        if self.sharing.local == shared:
            self.sharing.local = not shared
            self._regauge()

    def _regauge(self) -> None:
        for limits in self._all():
            limits.regauge()

    def _all(self) -> list[Settling]:
        return [*self._keys.values(), *self._caps.values()]

    def _lost(self, error: Exception) -> None:
        if not self._away:
            reason = str(error) or type(error).__name__
            _log.warning("limits.away", error=reason, gateways=self.sharing.gateways)
        self._away = True
        self._believe(False)
