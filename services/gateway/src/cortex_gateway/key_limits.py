"""KeyLimits: what one key may use, and Hold: what one request of it has taken until it ends. Pure."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from cortex_shared.contracts.keys import KeyRecord
from cortex_shared.limit_ledger import Ask, Told

from cortex_gateway.budget import Budget
from cortex_gateway.errors import ApiError
from cortex_gateway.limits import NO, YES, Lease, Limit, Sharing, Window


class Waiter(Protocol):
    """A request whose key's limits are being asked for."""

    def within(self) -> None:
        """It may go on."""
        ...

    def beyond(self, error: ApiError) -> None:
        """It is refused."""
        ...


class Hold:
    """What one request has taken, or waits for. Ends exactly once, however often `end` is called."""

    __slots__ = ("_limits", "_over", "_second", "cost", "taken", "waiter")

    def __init__(self, limits: "KeyLimits", cost: int, waiter: Waiter) -> None:
        self._limits = limits
        self._over = False
        self._second = 0
        self.cost = cost
        self.waiter = waiter
        self.taken = False

    def take(self, now: float) -> None:
        """Everything was found to be there."""
        limits = self._limits
        self.taken = True
        if limits.requests is not None:
            limits.requests.take(1, now)
        if limits.tokens is not None:
            self._second = limits.tokens.take(self.cost, now)
        if limits.slots is not None:
            limits.slots.take()
        for budget in limits.budgets:
            budget.take(self.cost)
        if not limits.dirty:
            limits.mark()

    def end(self, tokens: int, counted: int, now: float) -> None:
        """The request is over, or its client has left while it waited.

        `tokens` are what it used of the minute's, `counted` those that its record says, for budgets.
        """
        if self._over:
            return
        self._over = True
        limits = self._limits
        if not self.taken:
            limits.left(self)
            return
        if limits.slots is not None:
            limits.slots.give_back()
        if limits.tokens is not None:
            limits.tokens.settle(self._second, tokens - self.cost, now)
        for budget in limits.budgets:
            budget.use(self.cost, counted, limits.wall())
        if not limits.dirty:
            limits.mark()


class Settler(Protocol):
    """Who takes what is to be settled to the store."""

    def soon(self, limits: "KeyLimits") -> None:
        """Something has changed."""
        ...

    def at_once(self, limits: "KeyLimits") -> None:
        """A request waits."""
        ...


class KeyLimits:
    """All limits of one key, and its requests that wait for the store. Lives while the key has limits."""

    __slots__ = (
        "_asked",
        "_flight",
        "_name",
        "_requests_lines",
        "_settler",
        "_sharing",
        "_tokens_lines",
        "_waiting",
        "_waiting_max",
        "budgets",
        "calm",
        "dirty",
        "key",
        "requests",
        "slots",
        "tokens",
        "wall",
    )

    def __init__(
        self,
        record: KeyRecord,
        sharing: Sharing,
        settler: Settler,
        *,
        wall: Callable[[], float],
        waiting_max: int,
    ) -> None:
        """`wall`: seconds of the epoch. `waiting_max`: requests that may wait for the store at once."""
        self.key = record.id
        self.wall = wall
        # Whether the settler knows that there is something to settle; it says when it no longer is.
        self.dirty = False
        # Whether all limits are far away, as was last seen.
        self.calm = False
        self._name = record.name
        self._sharing = sharing
        self._settler = settler
        self._waiting_max = waiting_max
        self._waiting: deque[Hold] = deque()
        # Of those that wait, how many the store was asked for.
        self._asked = 0
        self._flight: list[tuple[Limit, int]] = []
        self.requests: Window | None = None
        self.tokens: Window | None = None
        self.slots: Lease | None = None
        self.budgets: tuple[Budget, ...] = ()
        self.update(record)

    def update(self, record: KeyRecord) -> None:
        """Take a record of the same key: what was used stays used."""
        self._name = record.name
        # The lines that say how far a request is from the limit, up to what is left.
        self._requests_lines = _lines("requests", record.requests_per_minute)
        self._tokens_lines = _lines("tokens", record.tokens_per_minute)
        self.requests = self._window(self.requests, record.requests_per_minute)
        self.tokens = self._window(self.tokens, record.tokens_per_minute)
        if record.concurrency <= 0:
            self.slots = None
        elif self.slots is None:
            self.slots = Lease(record.concurrency, self._sharing)
        else:
            self.slots.set_limit(record.concurrency)
        self.budgets = (
            *self._budget(record.tokens_per_day, monthly=False),
            *self._budget(record.tokens_per_month, monthly=True),
        )

    # One request.

    def admit(self, tokens: int, now: float, waiter: Waiter) -> Hold | ApiError:
        """Take one request that may come to `tokens`; a Hold that is not `taken` waits for the store."""
        window = self.tokens
        if window is not None and tokens > window.limit:
            tokens = window.limit  # it goes only when nothing else does
        found = self._check(tokens, now, fresh=False)
        if not isinstance(found, int):
            return found
        hold = Hold(self, tokens, waiter)
        if found == YES and not self._waiting:
            hold.take(now)
        elif len(self._waiting) >= self._waiting_max:
            return rate_limited("requests", f"Too many requests of the key {self._name!r} came at once.", 1)
        else:
            self._waiting.append(hold)
            self._settler.at_once(self)
        return hold

    def left(self, hold: Hold) -> None:
        """The client of a request that waits has gone. The next takes what was asked for it."""
        if hold in self._waiting:
            self._waiting.remove(hold)

    def mark(self) -> None:
        """Something has changed."""
        self.dirty = True
        self._settler.soon(self)

    def lines(self, now: float) -> bytes:
        """`x-ratelimit-*` as lines of a head: what may be used, what is left, when all of it is again."""
        window = self.requests
        found = b""
        if window is not None:
            # Compiled, what is formatted is evaluated twice unless all of it is bytes and integers.
            left, reset = window.remaining(now), duration(window.reset_seconds(now))
            found = b"%b%d\r\nx-ratelimit-reset-requests: %b\r\n" % (self._requests_lines, left, reset)
        window = self.tokens
        if window is not None:
            left, reset = window.remaining(now), duration(window.reset_seconds(now))
            found = b"%b%b%d\r\nx-ratelimit-reset-tokens: %b\r\n" % (found, self._tokens_lines, left, reset)
        return found

    # Settling.

    @property
    def waits(self) -> bool:
        """Whether requests wait for the store."""
        return bool(self._waiting)

    @property
    def unsettled(self) -> bool:
        """Whether there is anything to tell the store, or to ask it."""
        limits = (self.requests, self.tokens, self.slots, *self.budgets)
        return bool(self._waiting) or any(limit is not None and limit.unsettled for limit in limits)

    @property
    def leased(self) -> bool:
        """Whether it holds what expires unless it is renewed."""
        return self.slots is not None and self.slots.held > 0

    def ask(self, now: float) -> list[Ask]:
        """What to send to the store; then `told` or `failed` must be called, before `ask` is again."""
        asks: list[Ask] = []
        self._flight = []
        count = self._asked = len(self._waiting)
        if self.requests is not None:
            asks.append(self.requests.ask(f"{self.key}:r", count, min(count, 1), now))
            self._flight.append((self.requests, 1))
        if self.tokens is not None:
            want = sum(hold.cost for hold in self._waiting)
            least = self._waiting[0].cost if count else 0
            asks.append(self.tokens.ask(f"{self.key}:t", want, least, now))
            self._flight.append((self.tokens, 1))
        if self.slots is not None:
            asks.append(self.slots.ask(f"{self.key}:c", count, now))
            self._flight.append((self.slots, 1))
        limits = (self.requests, self.tokens, self.slots, *self.budgets)
        wall = self.wall()
        for budget in self.budgets:
            found = budget.ask(wall)
            asks += found
            self._flight.append((budget, len(found)))
        self.calm = not count and all(limit is None or limit.calm for limit in limits)
        return asks

    def told(self, told: Sequence[Told], now: float) -> None:
        """The store's answers, one for each ask. Requests that waited go on, or are refused."""
        at = 0
        for limit, count in self._flight:
            limit.told(told[at : at + count], now)
            at += count
        self._flight = []
        self._decide(min(self._asked, len(self._waiting)), now)

    def failed(self) -> None:
        """The store did not answer."""
        for limit, _ in self._flight:
            limit.failed()
        self._flight = []

    def decide_alone(self, now: float) -> None:
        """Requests that wait have waited long enough: this gateway's own share decides."""
        local, self._sharing.local = self._sharing.local, True
        try:
            self._decide(len(self._waiting), now)
        finally:
            self._sharing.local = local

    def restore(self) -> None:
        """The store was emptied: what was used here is to be told anew."""
        for window in (self.requests, self.tokens):
            if window is not None:
                window.restore()

    def regauge(self) -> None:
        """The number of gateways has changed."""
        for window in (self.requests, self.tokens):
            if window is not None:
                window.regauge()

    def _decide(self, count: int, now: float) -> None:
        # First all are judged: what is called below may bring in other requests.
        judged: list[tuple[Hold, ApiError | None]] = []
        for _ in range(count):
            hold = self._waiting.popleft()
            found = self._check(hold.cost, now, fresh=True)
            if isinstance(found, ApiError):
                judged.append((hold, found))
            else:
                hold.take(now)
                judged.append((hold, None))
        self._asked = 0
        for hold, error in judged:
            if error is None:
                hold.waiter.within()
            else:
                hold.waiter.beyond(error)

    def _check(self, cost: int, now: float, *, fresh: bool) -> int | ApiError:
        # YES or ASK, or why not.
        verdict = YES
        slots, window = self.slots, self.requests
        if slots is not None:
            verdict = slots.check(now, fresh=fresh)
            if verdict == NO:
                return self._too_many_at_once(slots)
        if window is not None:
            found = window.check(1, now, fresh=fresh)
            if found == NO:
                return self._used_up("requests", window, 1, now)
            verdict |= found
        window = self.tokens
        if window is not None:
            found = window.check(cost, now, fresh=fresh)
            if found == NO:
                return self._used_up("tokens", window, cost, now)
            verdict |= found
        for budget in self.budgets:
            found = budget.check(cost, now, self.wall(), fresh=fresh)
            if found == NO:
                return self._spent(budget)
            verdict |= found
        return verdict

    def _too_many_at_once(self, slots: Lease) -> ApiError:
        return rate_limited(
            "rate_limit_error",
            f"The key {self._name!r} may have {slots.limit} requests under way at once, and has them.",
            1,
        )

    def _used_up(self, kind: str, window: Window, cost: int, now: float) -> ApiError:
        seconds = math.ceil(window.wait_seconds(cost, now)) or 1
        asked = "" if kind == "requests" else f" This one may come to {cost}."
        return rate_limited(
            kind,
            f"The key {self._name!r} may use {window.limit} {kind} a minute, and has.{asked}"
            f" Try again in {seconds} s.",
            seconds,
        )

    def _spent(self, budget: Budget) -> ApiError:
        if not budget.spent:
            return rate_limited(
                "tokens", f"What is left of the tokens of the key {self._name!r} is in use just now.", 2
            )
        return ApiError(
            429,
            f"The key {self._name!r} has used its {budget.limit} tokens of this {budget.period} (UTC).",
            "insufficient_quota",
            "insufficient_quota",
            should_retry=False,
        )

    def _window(self, window: Window | None, limit: int) -> Window | None:
        if limit <= 0:
            return None
        if window is None:
            return Window(limit, self._sharing)
        window.set_limit(limit)
        return window

    def _budget(self, limit: int, *, monthly: bool) -> tuple[Budget, ...]:
        if limit <= 0:
            return ()
        for budget in self.budgets:
            if budget.monthly == monthly:
                budget.limit = limit
                return (budget,)
        return (Budget(self.key, limit, self._sharing, monthly=monthly),)


def limited(record: KeyRecord) -> bool:
    """Whether a key has any limit of use."""
    return (
        record.requests_per_minute > 0
        or record.tokens_per_minute > 0
        or record.concurrency > 0
        or record.tokens_per_day > 0
        or record.tokens_per_month > 0
    )


def rate_limited(kind: str, message: str, seconds: int) -> ApiError:
    """429, to be tried again; `kind` as OpenAI says it: `requests`, `tokens`."""
    return ApiError(429, message, kind, "rate_limit_exceeded", retry_after_seconds=seconds)


def duration(seconds: float) -> bytes:
    """As OpenAI writes durations: `0s`, `12ms`, `59s`, `6m0s`."""
    if 0 < seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    whole = int(seconds)
    if whole < seconds:
        whole += 1
    return _SPELLED[whole] if whole < _SPELLED_SECONDS else _minutes(whole)


def _minutes(seconds: int) -> bytes:
    return b"%ds" % seconds if seconds < 60 else b"%dm%ds" % (seconds // 60, seconds % 60)


def _lines(kind: str, limit: int) -> bytes:
    return f"x-ratelimit-limit-{kind}: {limit}\r\nx-ratelimit-remaining-{kind}: ".encode()


# All that a window comes to.
_SPELLED_SECONDS: Final = 62
_SPELLED = [_minutes(seconds) for seconds in range(_SPELLED_SECONDS)]
