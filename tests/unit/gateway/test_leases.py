"""Limiter: how many gateways share a limit, and when what was used is settled."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from cortex_gateway.leases import Limiter
from cortex_gateway.settings import LimitSettings
from cortex_shared.errors import Unavailable
from cortex_shared.limit_ledger import Ask, BudgetAsk, BudgetTold, Seen, Settled, Told


class _Store:
    # What is seen in a store, one look after the other.
    def __init__(self, *seen: Seen) -> None:
        self._seen = list(seen)

    async def look(self, asks: Sequence[Ask] = (), keys: Sequence[str] = ()) -> Seen:
        return self._seen.pop(0)

    async def settle(self, asks: Sequence[Ask]) -> Settled:
        raise NotImplementedError

    async def leave(self) -> None:
        raise NotImplementedError


async def test_no_share_grows_because_an_emptied_store_knows_few_gateways() -> None:
    limiter = Limiter(LimitSettings(), asyncio.get_running_loop())
    limiter.share(
        _Store(
            Seen(now=100.0, epoch=50.0, gateways=3, place=1),
            Seen(now=101.0, epoch=100.5, gateways=1, place=0),
            Seen(now=102.0, epoch=100.5, gateways=4, place=1),
            Seen(now=104.0, epoch=100.5, gateways=2, place=1),
        )
    )
    told: list[tuple[int, bool]] = []
    for _ in range(4):
        await limiter.look()
        told.append((limiter.sharing.gateways, limiter.sharing.local))
    assert told == [(3, False), (3, True), (4, True), (2, False)]


class _Total:
    # A store of one budget, which answers when it may.
    def __init__(self) -> None:
        self.total = 0
        self.looks: list[int] = []
        self.settlements: list[int] = []
        self.may = asyncio.Event()
        self.may.set()
        self.away = False

    async def look(self, asks: Sequence[Ask] = (), keys: Sequence[str] = ()) -> Seen:
        self.looks.append(len(asks))
        settled = await self._answer(asks)
        return Seen(100.0, 50.0, 1, 0, settled if asks else None, [key.encode() for key in keys])

    async def settle(self, asks: Sequence[Ask]) -> Settled:
        self.settlements.append(len(asks))
        return await self._answer(asks)

    async def _answer(self, asks: Sequence[Ask]) -> Settled:
        await self.may.wait()
        if self.away:
            raise Unavailable("away", code="store.away")
        told: list[Told] = []
        for ask in asks:
            assert isinstance(ask, BudgetAsk)
            self.total += ask.change
            told.append(BudgetTold(self.total))
        return Settled(100.0, 50.0, told)

    async def leave(self) -> None:
        raise NotImplementedError


class _Used:
    # Something that is used, and far from its limit.
    waits = leased = False

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self.dirty = False
        self.calm = True
        self.used = 0
        self.asked = 0
        self.total = 0

    def use(self) -> None:
        self.used += 1
        if not self.dirty:
            self.dirty = True
            self._limiter.soon(self)

    @property
    def unsettled(self) -> bool:
        return self.used > 0

    def ask(self, now: float) -> Sequence[Ask]:
        assert not self.asked
        self.asked, self.used = self.used, 0
        return [BudgetAsk("b", self.asked, 0, 60)]

    def told(self, told: Sequence[Told], now: float) -> None:
        (answer,) = told
        assert isinstance(answer, BudgetTold)
        self.asked, self.total = 0, answer.total

    def failed(self) -> None:
        self.used, self.asked = self.used + self.asked, 0

    def decide_alone(self, now: float) -> None:
        """Nobody waits."""

    def restore(self) -> None:
        """There is nothing of before."""

    def regauge(self) -> None:
        """It is no share."""


@asynccontextmanager
async def _settling() -> AsyncGenerator[tuple[Limiter, _Total, _Used]]:
    limiter, store = Limiter(LimitSettings(), asyncio.get_running_loop()), _Total()
    limiter.share(store)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(limiter.run())
        yield limiter, store, _Used(limiter)
        running.cancel()


async def test_what_was_used_is_settled_with_the_next_look() -> None:
    async with _settling() as (limiter, store, used):
        assert await limiter.look(["a", "b"]) == [b"a", b"b"]
        await asyncio.sleep(0)
        for count in range(1, 4):
            used.use()
            await limiter.look()
            await asyncio.sleep(0)
            assert used.total == count
        assert (store.looks, store.settlements) == ([0, 1, 1, 1], [])
        await limiter.look()
        assert store.looks[-1] == 0  # there is nothing


async def test_nothing_is_asked_twice_at_a_time() -> None:
    async with _settling() as (limiter, store, used):
        await limiter.look()
        used.use()
        store.may.clear()
        limiter.now(used)
        while not store.settlements:
            await asyncio.sleep(0)
        used.use()
        look = asyncio.ensure_future(limiter.look())
        while len(store.looks) == 1:
            await asyncio.sleep(0)
        assert store.looks == [0, 0]
        store.may.set()
        await look
        while used.total < 2:
            await limiter.look()


async def test_what_went_along_with_a_look_that_was_cancelled_is_settled_soon() -> None:
    async with _settling() as (limiter, store, used):
        await limiter.look()
        await asyncio.sleep(0)
        used.calm = False
        used.use()
        store.may.clear()
        look = asyncio.ensure_future(limiter.look())
        while store.looks != [0, 1]:
            await asyncio.sleep(0)
        look.cancel()
        await asyncio.wait([look])
        store.may.set()
        while used.total < 1:
            await asyncio.sleep(0.01)
        assert store.settlements == [1]


async def test_what_a_look_could_not_settle_is_settled_later() -> None:
    async with _settling() as (limiter, store, used):
        await limiter.look()
        used.use()
        store.away = True
        assert await limiter.look() is None
        used.use()
        assert await limiter.look() is None
        assert store.looks == [0, 1, 0]  # while it is away, it is only looked for
        store.away = False
        assert await limiter.look(["a"]) == [b"a"]
        while used.total < 2:
            await asyncio.sleep(0)
        assert store.settlements == [1]
