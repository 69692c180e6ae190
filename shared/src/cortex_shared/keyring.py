"""API keys in Redis as gateways need them: hashed, versioned, with a channel that says they changed."""

from collections.abc import Awaitable, Callable, Sequence

from cortex_shared.contracts.keys import KeyRecord
from cortex_shared.errors import InvalidInput
from cortex_shared.logs import get_logger
from cortex_shared.redis_connection import Followed, Redis, RedisError, unavailable

_log = get_logger("keyring")

KEYS_KEY = "cortex:keys:v1"
VERSION_KEY = "cortex:keys:v1:version"
CHANNEL = "cortex:keys:v1:changed"

# The whole ring is replaced in one step, so that no gateway ever reads half of it.
_REPLACE = """
local version = redis.call('GET', KEYS[2])
if version and tonumber(ARGV[1]) < tonumber(version) then return 0 end
redis.call('DEL', KEYS[1])
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[1])
return 1
"""


class Keyring:
    """Reads and replaces the ring. `version` is the API's own count, so that a late writer loses."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._replace = redis.register_script(_REPLACE)

    async def replace(self, version: int, records: Sequence[KeyRecord]) -> bool:
        """Write all keys; False if a newer ring stands. Raises Unavailable."""
        pairs: list[bytes | str] = []
        for record in records:
            pairs += [record.hash, record.encode()]
        try:
            done = await self._replace(keys=[KEYS_KEY, VERSION_KEY], args=[version, CHANNEL, *pairs])
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        return bool(done)

    async def version(self) -> int | None:
        """Version of the ring in Redis; None when there is none. Raises Unavailable."""
        try:
            data = await self._redis.get(VERSION_KEY)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        return None if data is None else int(data)

    async def read(self) -> list[KeyRecord]:
        """All keys; records that this version cannot read are left out and logged. Raises Unavailable."""
        try:
            found = await self._redis.hgetall(KEYS_KEY)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        records: list[KeyRecord] = []
        for data in found.values():
            try:
                records.append(KeyRecord.decode(data))
            except InvalidInput as error:
                _log.warning("keyring.unreadable_record", error=error.message)
        return records

    def followed(self, changed: Callable[[dict[str, KeyRecord]], Awaitable[None] | None]) -> Followed:
        """For `follow`: the whole ring, by hash, is handed over at each change.

        A Redis without a ring (away, or come back empty) hands over nothing: known keys go on.
        """

        async def take(version: bytes) -> bytes:
            records = await self.read()
            handed = changed({record.hash: record for record in records})
            if handed is not None:
                await handed
            return version

        return Followed(CHANNEL, VERSION_KEY, take)
