"""Limits in Redis: windows of a minute, leases of slots, budgets; all gateways settle by one script."""

from collections.abc import Sequence
from typing import Any, cast

from cortex_shared.limit_ledger import (
    BUDGET_MAX,
    EXPIRY_SECONDS,
    WINDOW_SECONDS,
    Ask,
    BudgetTold,
    LeaseAsk,
    LeaseTold,
    Seen,
    Settled,
    Told,
    WindowAsk,
    WindowTold,
)
from cortex_shared.redis_connection import AsyncScript, Redis, RedisError, unavailable

PREFIX = "cortex:limits:v1:"
SEEDED_KEY = f"{PREFIX}seeded"

# Numbers are integers. `stamp` is when anything was last settled: a store that knows less than a gateway has
# seen was emptied, or restored from an older copy, and begins a new epoch; windows of another do not count.
_HEAD = """
local prefix, process, seen, epoch_seen = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1])
local now_ms = now * 1000 + math.floor(tonumber(time[2]) / 1000)
local marks = redis.call('HMGET', prefix .. 'marks', 'stamp', 'epoch')
local stamp, epoch = tonumber(marks[1] or 0), tonumber(marks[2] or 0)
if epoch == 0 or stamp < seen then
  epoch = now_ms
  redis.call('HSET', prefix .. 'marks', 'epoch', string.format('%d', epoch))
end
if stamp < now_ms then
  stamp = now_ms
  redis.call('HSET', prefix .. 'marks', 'stamp', string.format('%d', stamp))
end
"""

_LOOK = """
local live, expiry = prefix .. 'live', tonumber(ARGV[5]) * 1000
redis.call('ZADD', live, string.format('%d', now_ms + expiry), process)
redis.call('ZREMRANGEBYSCORE', live, '-inf', string.format('%d', now_ms))
local place = 0
local all = redis.call('ZRANGE', live, 0, -1)
for _, name in ipairs(all) do
  if name < process then place = place + 1 end
end
local values = {}
if #KEYS > 0 then values = redis.call('MGET', unpack(KEYS)) end
"""

_ASKS = """
local expiry, window = tonumber(ARGV[5]) * 1000, tonumber(ARGV[6])
local at, out = 7, {now_ms, stamp, epoch, 1}

local function take()
  at = at + 1
  return ARGV[at - 1]
end

local function number()
  return tonumber(take())
end

local function text(value)
  return string.format('%d', value)
end

-- A window is a hash: amounts by second, their sum, and the oldest second that may be there.
local function roll(key, oldest, sum)
  local first = now - window
  if oldest >= first then return oldest, sum end
  if first - oldest > window then
    redis.call('DEL', key)
    return first, 0
  end
  local fields = {}
  for second = oldest, first - 1 do fields[#fields + 1] = text(second) end
  for _, amount in ipairs(redis.call('HMGET', key, unpack(fields))) do
    sum = sum - tonumber(amount or 0)
  end
  redis.call('HDEL', key, unpack(fields))
  return first, sum
end

local function wait_for(key, need)
  local amounts, freed = {}, 0
  local found = redis.call('HGETALL', key)
  for i = 1, #found, 2 do amounts[found[i]] = tonumber(found[i + 1]) end
  for second = now - window, now do
    freed = freed + (amounts[text(second)] or 0)
    if freed >= need then return second + window + 1 - now end
  end
  return window + 1
end

local function settle_window()
  local key, limit, want, least, count = prefix .. take(), number(), number(), number(), number()
  local head = redis.call('HMGET', key, 'epoch', 'sum', 'oldest')
  local sum, oldest = 0, now - window
  if tonumber(head[1] or 0) == epoch then
    oldest, sum = roll(key, tonumber(head[3]), tonumber(head[2]))
  else
    redis.call('DEL', key)
  end
  for _ = 1, count do
    local second, amount = number(), number()
    if second > now then second = now end
    if second >= oldest then
      redis.call('HINCRBY', key, text(second), text(amount))
      sum = sum + amount
    end
  end
  local granted, wait = 0, 0
  if want > 0 then
    granted = math.max(0, math.min(want, limit - sum))
    if granted < least then granted = 0 end
    if granted > 0 then
      redis.call('HINCRBY', key, text(now), text(granted))
      sum = sum + granted
    end
  end
  redis.call('HSET', key, 'epoch', text(epoch), 'sum', text(sum), 'oldest', text(oldest))
  redis.call('EXPIRE', key, window + 10)
  if granted < want then wait = wait_for(key, least + sum - limit) end
  out[#out + 1], out[#out + 2], out[#out + 3] = sum, granted, wait
end

-- A lease is a hash: for each gateway what it holds, what it wants besides, and until when that is believed.
local function settle_lease()
  local key, limit, keep, want = prefix .. take(), number(), number(), number()
  local found = redis.call('HGETALL', key)
  local others, wanted, asking = 0, 0, 0
  for i = 1, #found, 2 do
    local held, more, till = string.match(found[i + 1], '^(%d+) (%d+) (%d+)$')
    if tonumber(till) <= now_ms then
      redis.call('HDEL', key, found[i])
    elseif found[i] ~= process then
      others, wanted, asking = others + tonumber(held), wanted + tonumber(more), asking + 1
    end
  end
  local fair = limit
  if wanted > 0 then fair = math.max(1, math.ceil(limit / (asking + 1))) end
  local granted = math.max(0, math.min(want, limit - others - keep, math.max(0, fair - keep)))
  local held, unmet = keep + granted, want - granted
  if held + unmet > 0 then
    redis.call('HSET', key, process, text(held) .. ' ' .. text(unmet) .. ' ' .. text(now_ms + expiry))
    redis.call('PEXPIRE', key, expiry * 2)
  else
    redis.call('HDEL', key, process)
  end
  out[#out + 1], out[#out + 2], out[#out + 3] = held, held + others, fair
end

local function settle_budget()
  local key, change, floor, keep = prefix .. take(), number(), number(), take()
  local total = tonumber(redis.call('GET', key) or 0)
  local after = math.max(total, floor) + change
  if after ~= total then redis.call('SET', key, text(after), 'EX', keep) end
  out[#out + 1] = after
end

while at <= #ARGV do
  local kind = take()
  if kind == 'w' then settle_window() elseif kind == 'l' then settle_lease() else settle_budget() end
end
"""

_SETTLE = f"""{_HEAD}
if epoch ~= epoch_seen then return {{now_ms, stamp, epoch}} end
{_ASKS}
return out
"""

_LOOK_AND_SETTLE = f"""{_HEAD}{_LOOK}
if #ARGV < 7 or epoch ~= epoch_seen then return {{now_ms, stamp, epoch, #all, place, values}} end
{_ASKS}
return {{now_ms, stamp, epoch, #all, place, values, out}}
"""

# Totals that the database knows; what is there already may be ahead of it.
_SEED = """
for i = 4, #ARGV, 3 do
  local key = ARGV[1] .. ARGV[i]
  local total = tonumber(redis.call('GET', key) or 0)
  local told = tonumber(ARGV[i + 1])
  if told > total then redis.call('SET', key, ARGV[i + 1], 'EX', ARGV[i + 2]) end
end
redis.call('SET', ARGV[1] .. 'seeded', ARGV[2], 'EX', ARGV[3])
return 1
"""


class RedisLimits:
    """The store of a fleet."""

    def __init__(self, redis: Redis, process: str) -> None:
        """`process` is unique to this process's life."""
        self._redis = redis
        self._process = process
        self._look = redis.register_script(_LOOK_AND_SETTLE)
        self._settle = redis.register_script(_SETTLE)
        self._stamp: int = 0
        self._epoch: int = 0

    async def look(self, asks: Sequence[Ask] = (), keys: Sequence[str] = ()) -> Seen:
        """Say that this gateway is there, see who else is, settle, and read. Raises Unavailable as `settle`.

        All of it in one step, for what costs is the question.
        """
        found = cast("list[Any]", await self._run(self._look, self._args(asks), keys))
        now, self._stamp, epoch, gateways, place, values = found[:6]
        settled = None
        if asks:
            # The epoch is taken over with asks alone, so that those find the difference.
            self._epoch = epoch
            settled = self._settled(asks, found[6] if len(found) > 6 else found[:3])
        return Seen(now / 1000, epoch / 1000, gateways, place, settled, values)

    async def settle(self, asks: Sequence[Ask]) -> Settled:
        """Settle in one step. Raises Unavailable; then it may or may not be done."""
        found = cast("list[int]", await self._run(self._settle, self._args(asks)))
        _, self._stamp, self._epoch = found[:3]
        return self._settled(asks, found)

    def _args(self, asks: Sequence[Ask]) -> list[str | int]:
        args: list[str | int] = [
            *(PREFIX, self._process, self._stamp, self._epoch),
            *(EXPIRY_SECONDS, WINDOW_SECONDS),
        ]
        for ask in asks:
            _append(args, ask)
        return args

    @staticmethod
    def _settled(asks: Sequence[Ask], found: list[int]) -> Settled:
        told = _told(asks, found[4:]) if len(found) > 3 else None
        return Settled(found[0] / 1000, found[2] / 1000, told)

    @staticmethod
    async def _run(script: AsyncScript, args: list[str | int], keys: Sequence[str] = ()) -> object:
        try:
            return await script(keys=keys, args=args)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def leave(self) -> None:
        """This gateway ends. Raises Unavailable."""
        try:
            await self._redis.zrem(f"{PREFIX}live", self._process)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error


def _append(args: list[str | int], ask: Ask) -> None:
    if isinstance(ask, WindowAsk):
        args += ("w", ask.name, ask.limit, ask.want, ask.least, len(ask.changes))
        for second, amount in ask.changes:
            args += (second, amount)
    elif isinstance(ask, LeaseAsk):
        args += ("l", ask.name, ask.limit, ask.keep, ask.want)
    else:
        args += ("b", ask.name, ask.change, ask.floor, ask.keep_seconds)


def _told(asks: Sequence[Ask], found: list[int]) -> list[Told]:
    told: list[Told] = []
    at = 0
    for ask in asks:
        if isinstance(ask, WindowAsk):
            told.append(WindowTold(*found[at : at + 3]))
            at += 3
        elif isinstance(ask, LeaseAsk):
            told.append(LeaseTold(*found[at : at + 3]))
            at += 3
        else:
            told.append(BudgetTold(found[at]))
            at += 1
    return told


class BudgetSeeds:
    """The API's side: totals of each budget as the database knows them, for a Redis that has lost them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._seed = redis.register_script(_SEED)

    async def missing(self) -> bool:
        """Whether nothing was seeded lately, or Redis was emptied since. Raises Unavailable."""
        try:
            return await self._redis.get(SEEDED_KEY) is None
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def seed(self, totals: Sequence[tuple[str, int, int]], *, good_seconds: int) -> None:
        """Raise each budget (name, total, seconds to keep it) to its total. Raises Unavailable."""
        args: list[str | int] = [PREFIX, 1, good_seconds]
        for name, total, keep_seconds in totals:
            args += (name, min(BUDGET_MAX, total), keep_seconds)
        try:
            await self._seed(args=args)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
