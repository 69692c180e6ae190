"""Windows, slots and budgets: what may be used of a limit here and now, decided from memory. Pure.

All gateways settle in one store (`cortex_shared.limit_store`), some ten times a second and only while
something is used. Between two settlements each may use a small credit without asking: together a fortieth of
the limit. Near the limit there is no credit: then a request waits until the store has said yes. So they all
together stay within a fortieth of each limit, whatever their number. While the store is away, each has its
share of each limit and no more.

Times are of the event loop's clock, in seconds; `second`s are whole ones of the store's clock.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from cortex_shared.limit_ledger import (
    EXPIRY_SECONDS,
    WINDOW_SECONDS,
    LeaseAsk,
    LeaseTold,
    Told,
    WindowAsk,
    WindowTold,
)

# Verdicts: plain integers, compared some five times a request.
YES: Final = 0
ASK: Final = 1
NO: Final = 2

# For how long at most what was used counts: its second, then the window. A literal, for the compiler.
_COUNTS_SECONDS: Final = 61
assert _COUNTS_SECONDS == WINDOW_SECONDS + 1

_CREDIT_PARTS: Final = 40
# From this use on nothing is given without asking, for a minute, or until use has fallen to this.
_NEAR: Final = 0.9
_FAR: Final = 0.5
# A store that says no may say yes a moment later, when another request gives back what it did not use.
_AGAIN_SECONDS: Final = 0.1
# Requests that come closer than this are worth a few grants in advance.
_BUSY_SECONDS: Final = 0.2
# While limits are far away, so long a time passes between two settlements, which cost more than requests do.
# A little longer than between two looks at the store, for with a look they cost next to nothing.
CALM_SECONDS: Final = 1.25
# Of all slots a gateway has at most this part to spare, divided by the number of gateways.
_SPARE_PARTS: Final = 4
# Calm is what could go on so many times as fast without coming near.
_CALM_TIMES: Final = 4


class Sharing:
    """Among how many gateways a limit is shared, and whether they can settle now.

    `shared`: there is a store. `local`: it is away, or not to be believed yet, or there is none: what counts
    is this gateway's own share. `offset`: the store's clock minus the loop's, in seconds. `totals`: what
    was used of budgets, by their names, before this process and its store began.
    """

    __slots__ = ("gateways", "local", "offset", "place", "shared", "totals")

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.local = True
        self.offset = 0.0
        self.gateways = 1
        self.place = 0
        self.totals: Mapping[str, int] = {}

    def share(self, limit: int) -> int:
        """This gateway's part; the parts of all gateways add up to the limit."""
        return limit // self.gateways + (self.place < limit % self.gateways)


class Limit(Protocol):
    """What is settled with the store: between two of its `ask`, `told` or `failed` is called."""

    def told(self, told: Sequence[Told], now: float) -> None:
        """The store's answers, one for each ask."""
        ...

    def failed(self) -> None:
        """The store did not answer."""
        ...


class Window:
    """Requests, or tokens, of the last minute. `calm`: what is used is little of what is left."""

    __slots__ = (
        "_asked_at",
        "_dry_cost",
        "_dry_until",
        "_flying",
        "_known",
        "_known_at",
        "_more",
        "_newest",
        "_others",
        "_own",
        "_own_sum",
        "_pending",
        "_recent",
        "_sent",
        "_sharing",
        "_tight_until",
        "_unsent",
        "_wait_until",
        "_want",
        "calm",
        "credit",
        "limit",
    )

    def __init__(self, limit: int, sharing: Sharing) -> None:
        """`limit` is what may be used in any minute, above 0."""
        self._sharing = sharing
        self.limit = limit
        self.credit = self._blind_credit()
        # What was used here, and what of it the store does not know, by second.
        self._own: dict[int, int] = {}
        self._own_sum = 0
        # Used in the newest second and not in these yet: a number costs a tenth of what a dict does.
        self._newest = 0
        self._more = 0
        self._pending: dict[int, int] = {}
        # On its way to the store, and what of it was used; what is given back is no longer this gateway's.
        self._sent: dict[int, int] = {}
        self._flying = 0
        self._want = 0
        # Used and not known to the store; below 0: granted by the store and not used yet.
        self._unsent = 0
        # Used since the store was last asked.
        self._recent = 0
        self._asked_at = 0.0
        self._known = 0
        self._known_at = float("-inf")
        self._others = 0
        self._tight_until = 0.0
        self._dry_until = 0.0
        self._dry_cost = 0
        self._wait_until = 0.0
        self.calm = False

    def set_limit(self, limit: int) -> None:
        """The limit was changed."""
        if limit != self.limit:
            self.limit = limit
            self.credit = min(0, self._unsent)  # nothing without asking, what was granted before included
            self._dry_until = 0.0

    def check(self, cost: int, now: float, *, fresh: bool = False) -> int:
        """Whether `cost` may be used now. `fresh`: the store was just asked, so that ASK is no answer."""
        if self._sharing.local:
            return self._check_share(cost, now)
        if self._unsent + cost <= self.credit:
            return YES
        return NO if fresh or (now < self._dry_until and cost > self._dry_cost) else ASK

    def take(self, cost: int, now: float) -> int:
        """Use `cost`; returns the second, for `settle`."""
        second = int(now + self._sharing.offset)
        self._add(second, cost)
        self._recent += cost
        return second

    def settle(self, second: int, change: int, now: float) -> None:
        """What was taken in `second` was `change` more, or less."""
        if change == 0:
            return
        this_second = int(now + self._sharing.offset)
        if second >= this_second - WINDOW_SECONDS:
            self._add(second, change)
        elif change > 0:
            self._add(this_second, change)

    def ask(self, name: str, want: int, least: int, now: float) -> WindowAsk:
        """Settle, and ask for `want` more, of which less than `least` is of no use."""
        self._fold()
        self._roll(now)
        self._want = want
        if want and not self.credit and now < self._asked_at + _BUSY_SECONDS:
            # Others will ask in a moment: a part of what is left, if that much was used just now.
            left = max(0, self.limit - self._known) // (4 * self._sharing.gateways)
            want += min(self._recent, left)
        soon = self._recent * CALM_SECONDS / max(now - self._asked_at, _BUSY_SECONDS / 10)
        self.calm = soon * _CALM_TIMES <= self.credit
        self._recent, self._asked_at = 0, now
        self._sent, self._pending = self._pending, {}
        self._flying = max(0, sum(self._sent.values()))
        self._unsent = self._flying
        changes = [change for change in self._sent.items() if change[1]]
        return WindowAsk(name, self.limit, want, least, changes)

    def told(self, told: Sequence[Told], now: float) -> None:
        """The store's answer."""
        answer = told[0]
        assert isinstance(answer, WindowTold)
        used, granted, wait = answer
        self._fold()
        self._sent, self._flying = {}, 0
        if granted:
            second = int(now + self._sharing.offset)
            self._pending[second] = self._pending.get(second, 0) - granted
        self._unsent = sum(self._pending.values())
        self._known, self._known_at = used, now
        self._others = max(0, used - (self._own_sum - self._unsent))
        refused = granted < self._want
        if refused or used >= _NEAR * self.limit:
            self._tight_until = now + WINDOW_SECONDS
        elif used < _FAR * self.limit:
            self._tight_until = 0.0
        left = max(0, self.limit - used)
        tight = now < self._tight_until
        self.credit = 0 if tight else min(self._blind_credit(), left // (2 * self._sharing.gateways))
        self._dry_until = now + _AGAIN_SECONDS if refused else 0.0
        self._dry_cost = left
        self._wait_until = now + wait

    def failed(self) -> None:
        """The store did not answer: what was sent is pending again."""
        self._fold()
        for second, change in self._sent.items():
            self._pending[second] = self._pending.get(second, 0) + change
        self._sent, self._flying = {}, 0
        self._unsent = sum(self._pending.values())

    def restore(self) -> None:
        """The store was emptied: all that was used here within the last minute is to be sent again."""
        self._fold()
        self._pending = {second: amount for second, amount in self._own.items() if amount}
        self._unsent = sum(self._pending.values())

    @property
    def unsettled(self) -> bool:
        """Whether there is anything to tell the store."""
        self._fold()
        return any(self._pending.values())

    def regauge(self) -> None:
        """The number of gateways has changed."""
        self.credit = min(self.credit, self._blind_credit())

    def remaining(self, now: float) -> int:
        """What is left, as far as this gateway knows."""
        if self._sharing.local:
            return max(0, self._sharing.share(self.limit) - self._own_sum)
        known = self._known if now < self._known_at + _COUNTS_SECONDS - 1 else 0
        left, own = self.limit - known - self._unsent, self.limit - self._own_sum
        if own < left:
            left = own
        return left if left > 0 else 0

    def reset_seconds(self, now: float) -> float:
        """Until nothing of what was used here counts any more."""
        own, second = self._own, self._newest
        if self._more <= 0 and own.get(second, 0) + self._more <= 0:  # given back
            self._fold()
            for second in reversed(own):
                if own[second] > 0:
                    break
            else:
                return 0.0
        left = second - self._sharing.offset - now + _COUNTS_SECONDS
        return left if left > 0.0 else 0.0

    def wait_seconds(self, cost: int, now: float) -> float:
        """Until `cost` is worth another try, after NO."""
        if not self._sharing.local:
            return max(0.0, self._wait_until - now)
        self._fold()
        need = self._own_sum + cost - self._sharing.share(self.limit)
        for second, amount in self._own.items():
            need -= amount
            if need <= 0:
                return max(0.0, second + WINDOW_SECONDS + 1 - now - self._sharing.offset)
        return WINDOW_SECONDS

    def _check_share(self, cost: int, now: float) -> int:
        self._roll(now)
        share = self._sharing.share(self.limit)
        # A single request that is larger than the share waits until the share is whole.
        if self._own_sum + min(cost, max(1, share)) > share:
            return NO
        # What others had used when they were last heard of leaves the window in the course of a minute.
        past = (now - self._known_at) / WINDOW_SECONDS
        others = self._others * (1 - past) if past < 1 else 0
        return YES if self._own_sum + others + cost <= self.limit else NO

    def _add(self, second: int, amount: int) -> None:
        self._own_sum += amount
        if self._sharing.shared:
            self._unsent += amount
        if second == self._newest:
            self._more += amount
        elif second > self._newest:
            self._fold()
            self._newest, self._more = second, amount
        else:
            self._write(second, amount)

    def _fold(self) -> None:
        if self._more:
            more, self._more = self._more, 0
            self._write(self._newest, more)

    def _write(self, second: int, amount: int) -> None:
        own = self._own
        own[second] = own.get(second, 0) + amount
        if self._sharing.shared:
            pending = self._pending
            pending[second] = pending.get(second, 0) + amount
        elif len(own) > 2 * WINDOW_SECONDS:
            self._drop_old(second - WINDOW_SECONDS)

    def _roll(self, now: float) -> None:
        first = int(now + self._sharing.offset) - WINDOW_SECONDS
        if self._newest < first:
            self._fold()
        for oldest in self._own:
            if oldest < first:
                self._drop_old(first)
            return

    def _drop_old(self, first: int) -> None:
        for second in [second for second in self._own if second < first]:
            self._own_sum -= self._own.pop(second)
        for second in [second for second in self._pending if second < first]:
            self._unsent -= self._pending.pop(second)

    def _blind_credit(self) -> int:
        return self.limit // (_CREDIT_PARTS * self._sharing.gateways)


class Lease:
    """Slots: how many requests may be under way at once.

    A gateway holds what it has lately had in use, and as many again to spare while less than half of all are
    taken, so that hardly a request has to wait until the store was asked.
    """

    __slots__ = (
        "_fair",
        "_full_until",
        "_peak",
        "_peak_before",
        "_sharing",
        "_till",
        "_total",
        "_want",
        "held",
        "in_use",
        "limit",
    )

    def __init__(self, limit: int, sharing: Sharing) -> None:
        """`limit` is above 0."""
        self._sharing = sharing
        self.limit: int = limit
        self.held = 0
        self.in_use: int = 0
        self._peak = 0
        self._peak_before = 0
        self._total = 0
        self._want = 0
        self._fair = limit
        self._full_until = 0.0
        # Until when what is held was not given to others.
        self._till = 0.0

    def set_limit(self, limit: int) -> None:
        """The limit was changed."""
        if limit != self.limit:
            self.limit = limit
            self._fair = limit
            self._full_until = 0.0

    def check(self, now: float, *, fresh: bool = False) -> int:
        """Whether one more may be under way. `fresh`: the store was just asked, so that ASK is no answer."""
        if self._sharing.local:
            return YES if self.in_use < self._sharing.share(self.limit) else NO
        if self.in_use < self.held and self.in_use < self._fair and now < self._till:
            return YES
        return NO if fresh or now < self._full_until else ASK

    def take(self) -> None:
        """One more is under way."""
        self.in_use += 1
        if self.in_use > self._peak:
            self._peak = self.in_use

    def give_back(self) -> None:
        """One has ended."""
        self.in_use -= 1

    def ask(self, name: str, more: int, now: float) -> LeaseAsk:
        """Keep what is in use, and get what `more` requests need.

        What stood idle ever since the last time but one is given back.
        """
        busy = max(self._peak, self._peak_before)
        spare = self._spare(busy)
        self.held = max(self.in_use, min(busy + spare, self.held, self._fair))
        self._peak_before, self._peak = self._peak, self.in_use
        self._till = now + EXPIRY_SECONDS
        self._want = max(0, self.in_use + more + spare - self.held) if more or spare else 0
        return LeaseAsk(name, self.limit, self.held, self._want)

    def _spare(self, busy: int) -> int:
        # Not the last ones: those are for whoever needs them. More are taken while half of all are free, and
        # kept while a quarter is: all that gateways have to spare is a quarter at most, so that nobody gives
        # back because of what others took in the same moment, to take it again when they have given back.
        others = self._total - self.held
        most = min(busy, self.limit // (_SPARE_PARTS * self._sharing.gateways))
        new = self.limit // 2 - others - busy
        old = min(self.held - busy, self.limit * 3 // 4 - others - busy)
        return max(0, min(most, max(new, old)))

    def told(self, told: Sequence[Told], now: float) -> None:
        """The store's answer."""
        answer = told[0]
        assert isinstance(answer, LeaseTold)
        refused = answer.held < self.held + self._want
        self.held, self._total, self._fair = answer
        self._full_until = now + _AGAIN_SECONDS if refused else 0.0

    def failed(self) -> None:
        """The store did not answer."""

    @property
    def unsettled(self) -> bool:
        """Whether slots may be given back soon, or some are wanted."""
        busy = max(self._peak, self._peak_before)
        return busy != self.in_use or self.held != max(busy, min(busy + self._spare(busy), self._fair))

    @property
    def calm(self) -> bool:
        """Whether there are many left."""
        return 2 * self._total <= self.limit

    @property
    def remaining(self) -> int:
        """How many more may be under way here, as far as this gateway knows."""
        return max(0, (self._sharing.share(self.limit) if self._sharing.local else self.limit) - self.in_use)
