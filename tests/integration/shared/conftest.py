"""The servers' fixtures, and a bus that a test can hold."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from cortex_shared.bus import Bus
from cortex_shared.redis_connection import connect_redis
from cortex_shared.settings import NatsSettings
from redis.asyncio import Redis

from tests.servers import ServersUnderTest, secured_servers, servers

__all__ = ["bus", "redis", "secured_servers", "servers"]


@asynccontextmanager
async def tasks(*functions: Callable[[], Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    """Run these until the body ends; what one raises is raised here."""
    async with anyio.create_task_group() as group:
        for function in functions:
            group.start_soon(function)
        yield
        group.cancel_scope.cancel()


def bus_of(servers: ServersUnderTest, *, owns_streams: bool = True, credentials: Path | None = None) -> Bus:
    """A bus to these servers; run it."""
    settings = NatsSettings(url=servers.nats_url, credentials=credentials)
    return Bus(settings, name="test", owns_streams=owns_streams)


async def until(holds: Callable[[], bool], *, seconds: float = 20) -> None:
    """Wait for something that nobody tells us of."""
    with anyio.fail_after(seconds):
        while not holds():
            await anyio.sleep(0.005)


@pytest.fixture
async def bus(servers: ServersUnderTest) -> AsyncGenerator[Bus]:
    """A connected bus on an empty NATS, streams made."""
    await servers.fresh_nats()
    made = bus_of(servers)
    # A fixture's two halves run in different tasks, which a task group must not.
    held = asyncio.create_task(made.run())
    try:
        async with made.session():
            pass
        yield made
    finally:
        held.cancel()
        with suppress(asyncio.CancelledError):
            await held


@pytest.fixture
async def redis(servers: ServersUnderTest) -> AsyncGenerator[Redis]:
    """A client of an empty Redis."""
    await servers.flush_redis()
    client = connect_redis(servers.redis_url)
    yield client
    await client.aclose()
