"""The connection to Redis: bounded waits, errors that are retried, changes followed, health."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import anyio
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from cortex_shared.bell import Bell
from cortex_shared.errors import InvalidInput, Unavailable
from cortex_shared.logs import get_logger

__all__ = [
    "AsyncScript",
    "Followed",
    "Redis",
    "RedisError",
    "RedisHealth",
    "connect_redis",
    "follow",
    "unavailable",
]

_log = get_logger("redis")

_LOOK_SECONDS = 1.0
_HEAR_SECONDS = 15.0
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


@dataclass(frozen=True, slots=True)
class Followed:
    """A document with a version beside it, and a channel that says when it changed.

    `take` gets the version found, reads the document, hands it over, and returns which version that was. It
    may raise Unavailable, and InvalidInput for one that cannot be read.
    """

    channel: str
    version_key: str
    take: Callable[[bytes], Awaitable[bytes]]


type Read = Callable[[Sequence[str]], Awaitable[Sequence[bytes | None] | None]]
"""Reads the values of keys, with whatever else it asks; None if it could not."""


async def follow(redis: Redis, documents: Sequence[Followed], read: Read | None = None) -> None:
    """Take each document now and whenever it changed, until cancelled. What is not there is not taken.

    A message makes it quick, a look once a second makes it certain: one question for all of them. One that
    fails does not hold up the others. `read` may be somebody who asks Redis each second anyway. Redis being
    away is waited out, between tries for 0.1 s at first and for up to a second later.
    """
    keys = [each.version_key for each in documents]
    seen: dict[str, bytes] = {}
    unreadable: dict[str, bytes] = {}

    async def look() -> None:
        failed: Exception | None = None  # of one document, which must not hold up the others
        versions = None if read is None else await read(keys)
        if versions is None:
            versions = cast("list[bytes | None]", await redis.execute_command("MGET", *keys))
        for each, version in zip(documents, versions, strict=True):
            if version is None or version == seen.get(each.channel):
                continue
            try:
                seen[each.channel] = await each.take(version)
            except InvalidInput as error:
                if unreadable.get(each.channel) != version:
                    unreadable[each.channel] = version
                    _log.warning("redis.unreadable", channel=each.channel, error=error.message)
            except (RedisError, OSError, Unavailable) as error:
                failed = failed or error
        if failed is not None:
            raise failed

    await _follow_channels(redis, [each.channel for each in documents], look)


async def _follow_channels(redis: Redis, channels: list[str], look: Callable[[], Awaitable[None]]) -> None:
    first, last = _RETRY_SECONDS
    wait = first
    told = False
    while True:
        bell = Bell()
        pubsub = redis.pubsub(ignore_subscribe_messages=True)
        try:
            await pubsub.subscribe(*channels)
            # Hearing lasts: to begin it at each look would cost as much as the look does.
            async with anyio.create_task_group() as group:
                group.start_soon(_hear, pubsub, bell)
                while True:
                    await look()
                    told = False
                    wait = first
                    await bell.wait(_LOOK_SECONDS)
        except* (RedisError, OSError, Unavailable) as errors:
            if not told:
                _log.warning("redis.unreachable", channels=channels, error=str(errors.exceptions[0]))
            told = True
        finally:
            with anyio.move_on_after(1, shield=True), suppress(RedisError, OSError):
                await pubsub.aclose()
        await anyio.sleep(wait)
        wait = min(last, wait * 2)


async def _hear(pubsub: PubSub, bell: Bell) -> None:
    while True:
        # Some message, or none for a while: then the connection is tried.
        if await pubsub.get_message(timeout=_HEAR_SECONDS) is not None:
            bell.ring()


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
