"""RedisHealth: whether Redis answers, looked at now and then."""

import anyio
from cortex_shared.logs import get_logger
from redis.asyncio import Redis
from redis.exceptions import RedisError

_log = get_logger("redis")

_LOOK_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_ANSWER_SECONDS = 2.0


class RedisHealth:
    """`run` must be among the process's tasks."""

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
            await anyio.sleep(_LOOK_SECONDS if self.problem is None else _RETRY_SECONDS)
