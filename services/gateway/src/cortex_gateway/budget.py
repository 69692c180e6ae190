"""Budget: tokens of a day or a month, told by the store, and what may be begun on what it told. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cortex_shared.limit_ledger import (
    KEEP_DAY_SECONDS,
    KEEP_MONTH_SECONDS,
    Ask,
    BudgetAsk,
    BudgetTold,
    Told,
    day_name,
    month_name,
)

from cortex_gateway.limits import ASK, NO, YES, Sharing

# How old a budget's total may be, and what part of the rest may be begun on it by all gateways together.
_OLD_SECONDS: Final = 60.0
_REST_PARTS: Final = 20
# What was begun since it was last settled must be less than this of what is left, for it to be calm.
_CALM_PARTS: Final = 200
_DAY_SECONDS: Final = 86_400


class Budget:
    """Tokens of a day, or of a month (UTC), which the host's clock says."""

    __slots__ = (
        "_ends",
        "_flying",
        "_key",
        "_known",
        "_known_at",
        "_late",
        "_name",
        "_sent_name",
        "_sharing",
        "_since",
        "_unsent",
        "calm",
        "limit",
        "monthly",
        "reserved",
    )

    def __init__(self, key: int, limit: int, sharing: Sharing, *, monthly: bool) -> None:
        """`key` is the key's id; `limit` is above 0."""
        self._key = key
        self.monthly = monthly
        self._sharing = sharing
        self.limit = limit
        self.reserved = 0
        # Whether much is left, for what is used.
        self.calm = False
        self._name = self._sent_name = ""
        self._ends = 0.0
        self._known = 0
        self._known_at = float("-inf")
        # What requests that began since then may come to.
        self._since = 0
        self._unsent = 0
        self._flying = 0
        # What of the period before is not told yet: (name, amount).
        self._late = ("", 0)

    def check(self, cost: int, now: float, wall: float, *, fresh: bool = False) -> int:
        """Whether there is any left for what may come to `cost`; `wall` is in seconds of the epoch."""
        if wall >= self._ends:
            self._begin(wall)
        used = self._known + self._unsent
        if used >= self.limit:
            return NO
        if not self._sharing.shared:
            return YES
        if self._sharing.local:
            left = self._sharing.share(self.limit - self._known)
            return YES if self._unsent + self.reserved < left else NO
        if used + self.reserved >= self.limit:
            return NO
        if fresh:
            return YES
        begun = (self._since + cost) * _REST_PARTS * self._sharing.gateways
        return YES if begun <= self.limit - used and now < self._known_at + _OLD_SECONDS else ASK

    @property
    def period(self) -> str:
        """What it is a budget of."""
        return "month" if self.monthly else "day"

    @property
    def spent(self) -> bool:
        """Whether all of it is used: not only reserved by requests that are under way."""
        return self._known + self._unsent >= self.limit

    def take(self, cost: int) -> None:
        """A request begins that may come to `cost`."""
        self.reserved += cost
        if self._sharing.shared:
            self._since += cost

    def use(self, cost: int, tokens: int, wall: float) -> None:
        """It has ended, and come to `tokens`."""
        self.reserved -= cost
        if wall >= self._ends:
            self._begin(wall)
        if self._sharing.shared:
            self._unsent += tokens
        else:
            self._known += tokens

    def ask(self, wall: float) -> list[Ask]:
        """What was used, and the total so far is wanted."""
        if wall >= self._ends:
            self._begin(wall)
        left = self.limit - self._known - self._unsent
        self.calm = self._since * _CALM_PARTS * self._sharing.gateways <= left
        self._since = 0
        keep = KEEP_MONTH_SECONDS if self.monthly else KEEP_DAY_SECONDS
        asks: list[Ask] = [BudgetAsk(self._name, self._unsent, self._known, keep)]
        self._sent_name, self._flying = self._name, self._unsent
        name, amount = self._late
        if amount:
            asks.append(BudgetAsk(name, amount, 0, keep))
        return asks

    def told(self, told: Sequence[Told], now: float) -> None:
        """The store's answers."""
        answer = told[0]
        assert isinstance(answer, BudgetTold)
        if self._sent_name != self._name:
            # The period ended meanwhile: of what came late this has arrived.
            self._late = (self._late[0], self._late[1] - self._flying)
        else:
            if len(told) > 1:
                self._late = ("", 0)
            self._known, self._known_at = max(self._known, answer.total), now
            self._unsent -= self._flying
        self._flying = 0

    def failed(self) -> None:
        """The store did not answer."""
        self._flying = 0

    @property
    def unsettled(self) -> bool:
        """Whether there is anything to tell the store."""
        return bool(self._unsent or self._late[1] or self._since)

    def _begin(self, wall: float) -> None:
        # A new period.
        if self._unsent:
            self._late = (self._name, self._unsent)
        if not self.monthly:
            day = int(wall) // _DAY_SECONDS
            self._name, self._ends = day_name(self._key, day), (day + 1.0) * _DAY_SECONDS
        else:
            begun = datetime.fromtimestamp(wall, UTC)
            after = (begun.year + 1, 1) if begun.month == 12 else (begun.year, begun.month + 1)
            self._name = month_name(self._key, begun.year, begun.month)
            self._ends = datetime(*after, 1, tzinfo=UTC).timestamp()
        self._known = self._sharing.totals.get(self._name, 0)
        self._unsent, self._known_at = 0, float("-inf")
