"""The API's own process on real servers, and a node made of the messages that an agent sends."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.integration.api.process import ApiUnderTest, run_api
from tests.servers import ServersUnderTest, secured_servers, servers

__all__ = ["secured_servers", "servers"]


@pytest.fixture(scope="module")
def api(servers: ServersUnderTest) -> Iterator[ApiUnderTest]:
    """One API process for the module, on a fresh database, an empty NATS and an empty Redis."""
    asyncio.run(servers.flush_redis())
    nats_url = asyncio.run(servers.fresh_nats())
    database_url = asyncio.run(servers.fresh_database(scheme="postgresql+asyncpg"))
    with run_api(database_url=database_url, nats_url=nats_url, redis_url=servers.redis_url) as running:
        yield running
    asyncio.run(servers.drop_database(database_url.replace("postgresql+asyncpg:", "postgresql:")))
