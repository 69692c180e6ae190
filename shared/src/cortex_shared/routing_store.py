"""The routing table in Redis: one document, written under a fence, with a channel that says it changed."""

from collections.abc import Awaitable, Callable

from cortex_shared.contracts.routes import RoutingTable
from cortex_shared.redis_connection import Followed, Redis, RedisError, unavailable

TABLE_KEY = "cortex:routes:v1"
FENCE_KEY = "cortex:routes:v1:fence"
CHANNEL = "cortex:routes:v1:changed"

# A table is taken only if (term, version) is newer, so that a deposed monitor changes nothing.
_REPLACE = """
local fence = redis.call('GET', KEYS[2])
if fence then
  local term, version = string.match(fence, '^(%d+)%.(%d+)$')
  if tonumber(ARGV[1]) < tonumber(term) then return 0 end
  if tonumber(ARGV[1]) == tonumber(term) and tonumber(ARGV[2]) <= tonumber(version) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], ARGV[1] .. '.' .. ARGV[2])
redis.call('PUBLISH', ARGV[4], ARGV[1] .. '.' .. ARGV[2])
return 1
"""


class RoutingStore:
    """Reads and replaces the table."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._replace = redis.register_script(_REPLACE)

    async def replace(self, table: RoutingTable) -> bool:
        """Write the table and tell gateways; False if a newer one stands. Raises Unavailable."""
        try:
            done = await self._replace(
                keys=[TABLE_KEY, FENCE_KEY],
                args=[table.term, table.version, table.encode(), CHANNEL],
            )
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        return bool(done)

    async def read(self) -> RoutingTable | None:
        """The table, None when Redis holds none. Raises Unavailable, InvalidInput."""
        try:
            data = await self._redis.get(TABLE_KEY)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        return None if data is None else RoutingTable.decode(data)

    async def version(self) -> tuple[int, int] | None:
        """(term, version) of the table in Redis, None when it holds none. Raises Unavailable."""
        try:
            data = await self._redis.get(FENCE_KEY)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        if data is None:
            return None
        term, version = (data if isinstance(data, str) else data.decode()).split(".")
        return int(term), int(version)

    def followed(self, changed: Callable[[RoutingTable], Awaitable[None] | None]) -> Followed:
        """For `follow`: each new table is handed over. An empty or absent Redis hands over nothing."""

        async def take(version: bytes) -> bytes:
            table = await self.read()
            if table is None:
                return b""
            handed = changed(table)
            if handed is not None:
                await handed
            return b"%d.%d" % (table.term, table.version)

        return Followed(CHANNEL, FENCE_KEY, take)
