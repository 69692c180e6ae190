"""Limits on a real Redis: its script does what the ledger does, and a Redis that lost its data is noticed."""

import random
from collections.abc import Callable, Sequence

import pytest
from cortex_shared.errors import Unavailable
from cortex_shared.limit_ledger import (
    WINDOW_SECONDS,
    Ask,
    BudgetAsk,
    BudgetTold,
    LeaseAsk,
    LeaseTold,
    Ledger,
    Settled,
    WindowAsk,
    WindowTold,
)
from cortex_shared.limit_store import PREFIX, BudgetSeeds, RedisLimits
from cortex_shared.redis_connection import connect_redis
from redis.asyncio import Redis

type Pick = Callable[[], Ask]


async def synced(store: RedisLimits) -> Settled:
    """The first settlement only says which epoch it is."""
    first = await store.settle([])
    assert first.told is None
    found = await store.settle([])
    assert found.told == []
    return found


async def window(store: RedisLimits, ask: WindowAsk) -> WindowTold:
    """The answer to one ask."""
    told = (await store.settle([ask])).told
    assert told is not None
    (answer,) = told
    assert isinstance(answer, WindowTold)
    return answer


def some_ask(chance: random.Random, now: int) -> Ask:
    """Any ask, about few enough names that they meet."""
    kind = chance.randrange(3)
    if kind == 0:
        changes = [
            (now + chance.randint(-WINDOW_SECONDS - 2, 1), chance.choice((1, 3, 10, -2)))
            for _ in range(chance.randrange(4))
        ]
        want = chance.choice((0, 0, 1, 5, 40))
        return WindowAsk(f"w{chance.randrange(2)}", chance.choice((10, 50)), want, min(want, 3), changes)
    if kind == 1:
        limit = chance.choice((1, 4, 9))
        return LeaseAsk(f"l{chance.randrange(2)}", limit, chance.randrange(4), chance.choice((0, 1, 6)))
    return BudgetAsk("b", chance.randrange(50), chance.choice((0, 0, 30)), 60)


@pytest.mark.parametrize("seed", range(8))
async def test_redis_does_as_the_ledger_does(redis: Redis, seed: int) -> None:
    chance = random.Random(seed)
    stores = {name: RedisLimits(redis, name) for name in ("a", "b", "c")}
    first, *_ = [await synced(store) for store in stores.values()]
    ledger = Ledger(round(first.epoch * 1000))
    await redis.set("there", b"\xff1")
    for _ in range(60):
        name = chance.choice(list(stores))
        asks = [some_ask(chance, int(first.now)) for _ in range(chance.randint(1, 5))]
        if chance.random() < 0.5:
            seen = await stores[name].look(asks, ["there", "not there"])
            assert seen.values == [b"\xff1", None]
            assert seen.settled is not None
            found = seen.settled
        else:
            found = await stores[name].settle(asks)
        same = ledger.settle(name, round(found.epoch * 1000), asks, round(found.now * 1000))
        assert found == same, asks


async def test_a_window_forgets_after_a_minute_and_says_when(redis: Redis) -> None:
    store = RedisLimits(redis, "a")
    now = int((await synced(store)).now)
    changes = [(now - 70, 5), (now - 60, 1), (now - 40, 3), (now - 10, 4), (now + 5, 1)]
    told = (await store.settle([WindowAsk("w", 10, 0, 0, changes)])).told
    assert told == [WindowTold(9, 0, 0)]  # a minute ago and a bit counts still, what is older does not
    answer = await window(store, WindowAsk("w", 10, 5, 5, []))
    assert (answer.used, answer.granted) in ((9, 0), (8, 0))
    assert 18 <= answer.wait <= 21  # the three of 40 s ago must go, too
    answer = await window(store, WindowAsk("w", 10, 5, 1, []))
    assert answer.granted in (1, 2)  # a part of what is wanted, since it is of use


async def test_who_is_there(redis: Redis) -> None:
    stores = [RedisLimits(redis, name) for name in ("b", "a", "c")]
    for store in stores:
        await store.look()
    assert [(await store.look())[2:4] for store in stores] == [(3, 1), (3, 0), (3, 2)]
    await stores[1].leave()
    assert [(await store.look())[2:4] for store in (stores[0], stores[2])] == [(2, 0), (2, 1)]
    # One that was killed is there until it has not been heard for a while.
    await redis.zadd(f"{PREFIX}live", {"killed": (await stores[0].look()).now * 1000 + 200})
    assert (await stores[0].look()).gateways == 3
    while (await stores[0].look()).gateways == 3:
        pass
    assert (await stores[0].look()).gateways == 2


async def test_a_lease_of_a_killed_gateway_is_free_once_it_expires(redis: Redis) -> None:
    a, b = RedisLimits(redis, "a"), RedisLimits(redis, "b")
    for store in (a, b):
        await synced(store)
    assert (await a.settle([LeaseAsk("l", 4, 0, 4)])).told == [LeaseTold(4, 4, 4)]
    told = (await b.settle([LeaseAsk("l", 4, 0, 2)])).told
    assert told == [LeaseTold(0, 4, 4)]
    assert (await a.settle([LeaseAsk("l", 4, 4, 0)])).told == [LeaseTold(4, 4, 2)]  # b waits
    soon = round((await b.settle([])).now * 1000) + 200
    await redis.hset(f"{PREFIX}l", "a", f"4 0 {soon}")  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType] (redis-py: Awaitable or value)
    while (found := await b.settle([LeaseAsk("l", 4, 0, 2)])).told == [LeaseTold(0, 4, 4)]:
        assert found.now * 1000 <= soon + 1
    assert found.told == [LeaseTold(2, 2, 4)]


async def test_a_redis_that_lost_its_data_begins_a_new_epoch(redis: Redis) -> None:
    a, b = RedisLimits(redis, "a"), RedisLimits(redis, "b")
    first = await synced(a)
    await synced(b)
    now = int(first.now)
    before = await a.settle([WindowAsk("w", 100, 0, 0, [(now, 40)]), BudgetAsk("7:d:1", 500, 0, 60)])
    older = await redis.dump(f"{PREFIX}marks")
    assert older is not None
    await a.settle([WindowAsk("w", 100, 0, 0, [(now, 20)])])
    while (await a.settle([])).now == before.now:
        pass
    # An older copy, in which the window is as it was: those that saw more settle anew, all of them.
    await redis.restore(f"{PREFIX}marks", 0, older, replace=True)
    lost = await a.settle([WindowAsk("w", 100, 0, 0, [(now, 1)])])
    assert lost.told is None
    assert lost.epoch > first.epoch
    assert (await b.look()).epoch == lost.epoch
    assert (await a.settle([WindowAsk("w", 100, 0, 0, [(now, 61)])])).told == [WindowTold(61, 0, 0)]
    assert (await b.settle([])).told is None
    assert (await b.settle([WindowAsk("w", 100, 0, 0, [(now, 9)])])).told == [WindowTold(70, 0, 0)]
    # An empty one; a budget is what was known of it. A look that asks nothing leaves it to those that do.
    while (await a.settle([])).now == lost.epoch:
        pass
    await redis.flushall()
    assert (await a.look(keys=["x"])).settled is None
    seen = await a.look([BudgetAsk("7:d:1", 10, 500, 60)], ["x"])
    assert (seen.settled, seen.values) == ((seen.now, seen.epoch, None), [None])
    assert (await a.settle([BudgetAsk("7:d:1", 10, 500, 60)])).told == [BudgetTold(510)]


async def test_seeds_raise_and_never_lower(redis: Redis) -> None:
    seeds, store = BudgetSeeds(redis), RedisLimits(redis, "a")
    await synced(store)
    assert await seeds.missing()
    await store.settle([BudgetAsk("1:d:5", 100, 0, 60)])
    await seeds.seed([("1:d:5", 40, 60), ("2:d:5", 70, 60)], good_seconds=60)
    assert not await seeds.missing()
    asks: Sequence[Ask] = [BudgetAsk("1:d:5", 0, 0, 60), BudgetAsk("2:d:5", 1, 0, 60)]
    assert (await store.settle(asks)).told == [BudgetTold(100), BudgetTold(71)]
    await seeds.seed([("2:d:5", 2**60, 60)], good_seconds=60)
    assert (await store.settle([BudgetAsk("2:d:5", 0, 0, 60)])).told == [BudgetTold(2**53)]


async def test_a_redis_that_is_away_is_unavailable() -> None:
    client = connect_redis("redis://127.0.0.1:1/0")
    store, seeds = RedisLimits(client, "a"), BudgetSeeds(client)
    for call in (store.look, store.leave, seeds.missing):
        with pytest.raises(Unavailable):
            await call()
    with pytest.raises(Unavailable):
        await store.settle([])
    with pytest.raises(Unavailable):
        await seeds.seed([], good_seconds=1)
    await client.aclose()
