"""The connection to Redis: bounded waits, errors that are retried, changes followed, health."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from cortex_shared.errors import InvalidInput, Unavailable
from cortex_shared.logs import get_logger

__all__ = [
    "AsyncScript",
    "Redis",
    "RedisError",
    "RedisHealth",
    "connect_redis",
    "follow_channel",
    "unavailable",
]

_log = get_logger("redis")

_LOOK_SECONDS = 1.0
_RETRY_SECONDS = (0.1, 1.0)
_HEALTH_SECONDS = 5.0
_HEALTH_RETRY_SECONDS = 1.0
_ANSWER_SECONDS = 2.0


def connect_redis(url: str) -> Redis:
    """A client for a `redis://`, `rediss://` or `unix://` address, with bounded waits."""
    return Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2, health_check_interval=15)


def unavailable(error: Exception) -> Unavailable:
    """A Redis error as one that is retried."""
    return Unavailable(f"Redis did not answer: {error}", code="redis.no_answer", remedy="see that Redis runs")


async def follow_channel(redis: Redis, channel: str, look: Callable[[], Awaitable[None]]) -> None:
    """Call `look` now, after every message on the channel, and once a second, until cancelled.

    The message makes it quick, the second makes it certain. Redis being away is waited out, between tries
    for 0.1 s at first and for up to a second later.
    """
    first, last = _RETRY_SECONDS
    wait = first
    told = False
    while True:
        pubsub = redis.pubsub(ignore_subscribe_messages=True)
        try:
            await pubsub.subscribe(channel)
            while True:
                await look()
                told = False
                wait = first
                await pubsub.get_message(timeout=_LOOK_SECONDS)
        except (RedisError, OSError, Unavailable, InvalidInput) as error:
            if not told:
                _log.warning("redis.unreachable", channel=channel, error=str(error))
                told = True
            await anyio.sleep(wait)
            wait = min(last, wait * 2)
        finally:
            with anyio.move_on_after(1, shield=True), suppress(RedisError, OSError):
                await pubsub.aclose()


class RedisHealth:
    """Whether Redis answers: `problem` is None if it does. `run` must be among the process's tasks."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.problem: str | None = "not reached yet"

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            before = self.problem
            try:
                with anyio.fail_after(_ANSWER_SECONDS):
                    await self._redis.execute_command("PING")
                self.problem = None
            except TimeoutError:
                self.problem = "did not answer in time"
            except (RedisError, OSError) as error:
                self.problem = str(error) or type(error).__name__
            if (before is None) != (self.problem is None):
                _log.info("redis.changed", problem=self.problem)
            await anyio.sleep(_HEALTH_SECONDS if self.problem is None else _HEALTH_RETRY_SECONDS)
