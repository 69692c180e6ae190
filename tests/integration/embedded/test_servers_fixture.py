"""The set of servers that other tests stand on: fresh databases, an empty bus, a flushed Redis."""

import asyncio

import nats
from cortex_shared.nats_auth import Credentials
from redis.asyncio import Redis

from tests.servers import ServersUnderTest, connect_postgres


async def test_databases_are_fresh_and_apart(servers: ServersUnderTest) -> None:
    first, second = await servers.fresh_database(), await servers.fresh_database()
    connection = await connect_postgres(first)
    await connection.execute("CREATE TABLE t (i int)")
    await connection.close()
    other = await connect_postgres(second)
    assert await other.fetchval("SELECT count(*) FROM pg_tables WHERE tablename = 't'") == 0
    assert await other.fetchval("SHOW timezone") == "UTC"
    await other.close()
    await servers.drop_database(first)
    await servers.drop_database(second)


async def test_nats_comes_back_empty(servers: ServersUnderTest) -> None:
    client = await nats.connect(servers.nats_url)
    await client.jetstream().add_stream(name="S", subjects=["s.>"])
    await client.close()
    client = await nats.connect(await servers.fresh_nats())
    assert await client.jetstream().streams_info() == []
    await client.close()


async def test_redis_is_flushed(servers: ServersUnderTest) -> None:
    client = Redis.from_url(servers.redis_url)
    await client.set("a", 1)
    await servers.flush_redis()
    assert await client.dbsize() == 0
    await client.aclose()


async def test_secured_nats_wants_credentials(secured_servers: ServersUnderTest) -> None:
    path = secured_servers.credentials("tester")
    client = await nats.connect(secured_servers.nats_url, **Credentials.read(path).connect_options())
    await client.jetstream().add_stream(name="S", subjects=["s.>"])
    await client.close()
    host, port = secured_servers.nats_url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await reader.readline()
    writer.write(b'CONNECT {"verbose": false}\r\n')
    assert b"Authorization Violation" in await reader.readline()
    writer.close()
    await writer.wait_closed()
