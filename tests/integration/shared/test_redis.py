"""Routing table and keyring on a real Redis: fences, followers, and a Redis that comes back empty."""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import pairwise

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from cortex_shared.contracts.keys import KeyRecord, hash_key
from cortex_shared.contracts.routes import RoutingTable
from cortex_shared.errors import Unavailable
from cortex_shared.keyring import Keyring
from cortex_shared.redis_connection import connect_redis, follow
from cortex_shared.routing_store import CHANNEL, TABLE_KEY, RoutingStore
from redis.asyncio import Redis

from tests.integration.shared.conftest import tasks, until
from tests.servers import ServersUnderTest


def table(term: int, version: int) -> RoutingTable:
    return RoutingTable(term=term, version=version, written_at=datetime.now(UTC), routes=[])


def key(name: str) -> KeyRecord:
    return KeyRecord(id=1, name=name, hash=hash_key(f"sk-cortex-{name}"))


async def test_only_a_newer_table_is_taken(redis: Redis) -> None:
    store = RoutingStore(redis)
    assert await store.read() is None
    assert await store.version() is None
    assert await store.replace(table(2, 5))
    for term, version in ((1, 99), (2, 5), (2, 4)):
        assert not await store.replace(table(term, version))
    assert await store.version() == (2, 5)
    assert await store.replace(table(2, 6))
    assert await store.replace(table(10, 1)), "terms are compared as numbers"
    found = await store.read()
    assert found is not None
    assert (found.term, found.version) == (10, 1)


async def test_only_a_keyring_that_is_not_older_is_taken(redis: Redis) -> None:
    ring = Keyring(redis)
    assert await ring.version() is None
    assert await ring.replace(10, [key("a"), key("b")])
    assert not await ring.replace(9, [])
    assert {record.name for record in await ring.read()} == {"a", "b"}
    assert await ring.replace(11, [key("c")])
    assert [record.name for record in await ring.read()] == ["c"]
    assert await ring.replace(12, [])
    assert await ring.read() == []


async def test_a_record_of_a_later_version_does_not_hide_the_others(redis: Redis) -> None:
    ring = Keyring(redis)
    await ring.replace(1, [key("a")])
    await redis.hset("cortex:keys:v1", "x", b'{"type": "cortex.key.v9"}')  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType] (redis-py: Awaitable or value)
    assert [record.name for record in await ring.read()] == ["a"]


async def test_followers_see_a_change_within_50_ms(redis: Redis) -> None:
    store, ring = RoutingStore(redis), Keyring(redis)
    tables: list[tuple[float, int]] = []
    rings: list[tuple[float, int]] = []

    def table_changed(changed: RoutingTable) -> None:
        tables.append((time.perf_counter(), changed.version))

    def ring_changed(changed: dict[str, KeyRecord]) -> None:
        rings.append((time.perf_counter(), len(changed)))

    documents = [store.followed(table_changed), ring.followed(ring_changed)]
    async with tasks(lambda: follow(redis, documents)):
        await until_followed(redis)
        waits: list[float] = []
        for number in range(1, 30):
            begun = time.perf_counter()
            await store.replace(table(1, number))
            await ring.replace(number, [key(str(n)) for n in range(number)])
            await until(lambda: len(tables) == number and len(rings) == number)  # noqa: B023 (awaited here)
            waits += [tables[-1][0] - begun, rings[-1][0] - begun]
    assert [version for _, version in tables] == list(range(1, 30))
    assert [count for _, count in rings] == list(range(1, 30))
    waits.sort()
    print(f"follow: median {waits[len(waits) // 2] * 1e3:.1f} ms, worst {waits[-1] * 1e3:.1f} ms")
    # The look that makes it certain comes once a second: half of that proves that the message was heard.
    assert waits[len(waits) // 2] < 0.5


async def until_followed(redis: Redis) -> None:
    """Until somebody is subscribed."""
    with anyio.fail_after(10):
        while True:
            (_, count), *_ = await redis.pubsub_numsub(CHANNEL)
            if count:
                return
            await anyio.sleep(0.01)


async def test_an_emptied_redis_hands_over_nothing(servers: ServersUnderTest, redis: Redis) -> None:
    store = RoutingStore(redis)
    seen: list[int] = []

    def changed(found: RoutingTable) -> None:
        seen.append(found.version)

    await store.replace(table(1, 1))
    async with tasks(lambda: follow(redis, [store.followed(changed)])):
        await until(lambda: seen == [1])
        await servers.flush_redis()
        await redis.publish(CHANNEL, "1.1")
        await anyio.sleep(1.2)  # longer than the look that would find it missing
        assert seen == [1]
        await store.replace(table(1, 2))
        await until(lambda: seen == [1, 2])
        await servers.empty("redis")
        await write(store, table(1, 3))
        await until(lambda: seen == [1, 2, 3])


async def write(store: RoutingStore, made: RoutingTable) -> None:
    """Write as soon as Redis is there."""
    with anyio.fail_after(20):
        while True:
            try:
                assert await store.replace(made)
            except Unavailable:
                await anyio.sleep(0.05)
            else:
                return


async def test_followers_outlive_a_killed_redis(servers: ServersUnderTest, redis: Redis) -> None:
    store = RoutingStore(redis)
    seen: list[int] = []

    def changed(found: RoutingTable) -> None:
        seen.append(found.version)

    await store.replace(table(1, 1))
    async with tasks(lambda: follow(redis, [store.followed(changed)])):
        await until(lambda: seen == [1])
        servers.kill("redis")
        await write(store, table(1, 2))
        await until(lambda: seen == [1, 2])


async def test_a_table_that_cannot_be_read_is_passed_over(redis: Redis) -> None:
    store = RoutingStore(redis)
    seen: list[int] = []

    def changed(found: RoutingTable) -> None:
        seen.append(found.version)

    await store.replace(table(1, 1))
    await redis.set(TABLE_KEY, b'{"type": "cortex.routing_table.v9"}')
    ring, keys = Keyring(redis), list[int]()

    def keys_changed(records: dict[str, KeyRecord]) -> None:
        keys.append(len(records))

    async with tasks(lambda: follow(redis, [store.followed(changed), ring.followed(keys_changed)])):
        await until_followed(redis)
        for count in (1, 0):  # what else is followed goes on
            await ring.replace(2 - count, [key("a")] * count)
            await until(lambda: keys[-1:] == [count])  # noqa: B023 (awaited here)
        assert not seen
        await store.replace(table(1, 2))
        await until(lambda: seen == [2])


async def test_a_document_that_fails_holds_up_no_other(redis: Redis) -> None:
    store, ring = RoutingStore(redis), Keyring(redis)
    tables, keys = list[int](), list[int]()
    await store.replace(table(1, 1))
    await redis.delete(TABLE_KEY)
    await redis.rpush(TABLE_KEY, "x")  # pyright: ignore[reportGeneralTypeIssues, reportUnknownMemberType] (redis-py: Awaitable or value)

    def table_changed(changed: RoutingTable) -> None:
        tables.append(changed.version)

    def keys_changed(records: dict[str, KeyRecord]) -> None:
        keys.append(len(records))

    documents = [store.followed(table_changed), ring.followed(keys_changed)]
    async with tasks(lambda: follow(redis, documents)):
        for count in (1, 0):
            await ring.replace(2 - count, [key("a")] * count)
            await until(lambda: keys[-1:] == [count])  # noqa: B023 (awaited here)
        assert not tables
        await redis.delete(TABLE_KEY)
        await store.replace(table(1, 2))
        await until(lambda: tables == [2])


async def test_an_absent_redis_is_unavailable_with_a_remedy_and_no_password(unused_tcp_port: int) -> None:
    client = connect_redis(f"redis://:hunter2@127.0.0.1:{unused_tcp_port}/0")
    store, ring = RoutingStore(client), Keyring(client)
    calls: list[Callable[[], Awaitable[object]]] = [
        store.read,
        store.version,
        ring.read,
        ring.version,
        lambda: store.replace(table(1, 1)),
        lambda: ring.replace(1, []),
    ]
    for call in calls:
        with pytest.raises(Unavailable) as caught:
            await call()
        assert caught.value.remedy
        assert "hunter2" not in str(caught.value.body())
    await client.aclose()


async def test_a_redis_that_is_away_is_tried_more_and_more_seldom() -> None:
    tries: list[float] = []

    async def refuse(stream: SocketStream) -> None:
        tries.append(time.monotonic())
        await stream.aclose()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listener:
        port = listener.extra(SocketAttribute.local_port)
        client = connect_redis(f"redis://127.0.0.1:{port}/0")
        documents = [RoutingStore(client).followed(lambda _: None)]
        async with tasks(lambda: listener.serve(refuse), lambda: follow(client, documents)):
            await until(lambda: len(tries) >= 7)
        await client.aclose()
    gaps = [after - before for before, after in pairwise(tries)]
    # A busy machine only makes them longer.
    assert all(gap >= least * 0.9 for gap, least in zip(gaps, (0.1, 0.2, 0.4, 0.8, 1, 1), strict=False))
