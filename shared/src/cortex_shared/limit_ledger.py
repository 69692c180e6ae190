"""What gateways settle of limits with each other, and Ledger: the rules of it, in memory. Pure."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

WINDOW_SECONDS = 60
# A gateway that has not been heard for this long holds no slot and has no share.
EXPIRY_SECONDS = 10
BATCH_MAX = 256
BUDGET_MAX = 2**53
# How long the total of a budget is kept: somewhat longer than it counts.
KEEP_DAY_SECONDS = 3 * 86_400
KEEP_MONTH_SECONDS = 35 * 86_400


class WindowAsk(NamedTuple):
    """Settle a window: `changes` are (second, amount), seconds of the store's clock, amounts of either sign.

    `want` more is wanted now, of which less than `least` is of no use. 0: nothing is.
    """

    name: str
    limit: int
    want: int
    least: int
    changes: Sequence[tuple[int, int]]


class WindowTold(NamedTuple):
    """`used` of the last minute by all, `granted` included; `wait` is the seconds until `least` more fits."""

    used: int
    granted: int
    wait: int


class LeaseAsk(NamedTuple):
    """Keep `keep` slots of `limit`, and get up to `want` more."""

    name: str
    limit: int
    keep: int
    want: int


class LeaseTold(NamedTuple):
    """`held` are now this gateway's, `total` all gateways'.

    No more than `fair` should be held here: less than the limit only while another gateway wants some.
    """

    held: int
    total: int
    fair: int


class BudgetAsk(NamedTuple):
    """Add `change` to the total of a period. `floor` was the total once: one that was lost is restored."""

    name: str
    change: int
    floor: int
    keep_seconds: int


class BudgetTold(NamedTuple):
    """The period's total."""

    total: int


type Ask = WindowAsk | LeaseAsk | BudgetAsk
type Told = WindowTold | LeaseTold | BudgetTold


class Settled(NamedTuple):
    """An answer: the store's clock in seconds, its epoch (when it was last empty), an answer for each ask.

    `told` is None when the store was emptied since this gateway last heard of it: nothing was done, and what
    this gateway used within the last minute is to be told anew.
    """

    now: float
    epoch: float
    told: list[Told] | None


class Seen(NamedTuple):
    """The store's clock and epoch, how many gateways there are, and this one's place among them.

    `settled` is what was settled with the look, None if nothing was asked; `values` are what the store holds
    under the keys that were to be read.
    """

    now: float
    epoch: float
    gateways: int
    place: int
    settled: Settled | None = None
    values: Sequence[bytes | None] = ()


class LimitStore(Protocol):
    """Where gateways settle. One store object per gateway process."""

    async def look(self, asks: Sequence[Ask] = (), keys: Sequence[str] = ()) -> Seen:
        """Say that this gateway is there, see who else is, settle, and read. Raises Unavailable as `settle`.

        Keys are of a store that holds other things, too; elsewhere there is nothing under them.
        """
        ...

    async def settle(self, asks: Sequence[Ask]) -> Settled:
        """Settle up to BATCH_MAX asks in one step. Raises Unavailable; then they may or may not be done."""
        ...

    async def leave(self) -> None:
        """This gateway ends. Raises Unavailable."""
        ...


def day_name(key: int, day: int) -> str:
    """The name of a key's budget of a day; `day` counts from 1970-01-01 (UTC)."""
    return f"{key}:d:{day}"


def month_name(key: int, year: int, month: int) -> str:
    """The name of a key's budget of a month (UTC)."""
    return f"{key}:m:{year:04}-{month:02}"


class Ledger:
    """The rules by which all stores settle: Redis' script does the same. Times are in milliseconds.

    Bounded by the limits that were used lately: call `sweep` now and then.
    """

    def __init__(self, epoch: int) -> None:
        """`epoch`: when it was made."""
        self.epoch = epoch
        self._live: dict[str, int] = {}
        self._windows: dict[str, dict[int, int]] = {}
        self._leases: dict[str, dict[str, tuple[int, int, int]]] = {}
        self._budgets: dict[str, tuple[int, int]] = {}

    def look(self, process: str, now: int) -> Seen:
        """`process` is there; who else is?"""
        self._live[process] = now + EXPIRY_SECONDS * 1000
        self._live = {name: till for name, till in self._live.items() if till > now}
        place = sum(name < process for name in self._live)
        return Seen(now / 1000, self.epoch / 1000, len(self._live), place)

    def leave(self, process: str) -> None:
        """`process` is gone: what it held is free."""
        self._live.pop(process, None)
        for held in self._leases.values():
            held.pop(process, None)

    def settle(self, process: str, epoch_seen: int, asks: Sequence[Ask], now: int) -> Settled:
        """Settle in one step; `epoch_seen` is the epoch that `process` last heard of."""
        if epoch_seen != self.epoch:
            return Settled(now / 1000, self.epoch / 1000, None)
        return Settled(now / 1000, self.epoch / 1000, [self._one(process, ask, now) for ask in asks])

    def sweep(self, now: int) -> None:
        """Forget what no longer counts."""
        first = now // 1000 - WINDOW_SECONDS
        self._windows = {
            name: found for name, found in self._windows.items() if max(found, default=0) >= first
        }
        for held in self._leases.values():
            for process in [process for process, (_, _, till) in held.items() if till <= now]:
                del held[process]
        self._leases = {name: held for name, held in self._leases.items() if held}
        self._budgets = {name: found for name, found in self._budgets.items() if found[1] > now}

    def _one(self, process: str, ask: Ask, now: int) -> Told:
        if isinstance(ask, WindowAsk):
            return self._window(ask, now // 1000)
        if isinstance(ask, LeaseAsk):
            return self._lease(process, ask, now)
        total, till = self._budgets.get(ask.name, (0, now))
        total = max(total if till >= now else 0, ask.floor) + ask.change
        self._budgets[ask.name] = (total, now + ask.keep_seconds * 1000)
        return BudgetTold(total)

    def _window(self, ask: WindowAsk, now: int) -> WindowTold:
        first = now - WINDOW_SECONDS
        amounts = self._windows.setdefault(ask.name, {})
        for second in [second for second in amounts if second < first]:
            del amounts[second]
        for told, amount in ask.changes:
            second = min(told, now)
            if second >= first:
                amounts[second] = amounts.get(second, 0) + amount
        used = sum(amounts.values())
        granted = max(0, min(ask.want, ask.limit - used))
        if granted < ask.least:
            granted = 0
        if granted:
            amounts[now] = amounts.get(now, 0) + granted
            used += granted
        if granted >= ask.want:
            return WindowTold(used, granted, 0)
        need = ask.least + used - ask.limit
        for second in range(first, now + 1):
            need -= amounts.get(second, 0)
            if need <= 0:
                return WindowTold(used, granted, second + WINDOW_SECONDS + 1 - now)
        return WindowTold(used, granted, WINDOW_SECONDS + 1)

    def _lease(self, process: str, ask: LeaseAsk, now: int) -> LeaseTold:
        leases = self._leases.setdefault(ask.name, {})
        others = {name: lease for name, lease in leases.items() if lease[2] > now and name != process}
        total = sum(held for held, _, _ in others.values())
        fair = ask.limit
        if any(wanted for _, wanted, _ in others.values()):
            fair = max(1, math.ceil(ask.limit / (len(others) + 1)))
        granted = max(0, min(ask.want, ask.limit - total - ask.keep, fair - ask.keep))
        held, unmet = ask.keep + granted, ask.want - granted
        if held or unmet:
            others[process] = (held, unmet, now + EXPIRY_SECONDS * 1000)
        self._leases[ask.name] = others
        return LeaseTold(held, held + total, fair)
