"""Which chooser a route's policy names, and what of a request it is told."""

import random
from collections.abc import Sequence

from cortex_gateway import affinity
from cortex_gateway.affinity import Memory, News
from cortex_gateway.balance import Affinity, Chooser, Health, RoundRobin
from cortex_gateway.prefix import PrefixChooser
from cortex_gateway.sessions import HeaderList, session
from cortex_gateway.sticky import StickyChooser


class Choosers:
    """Makes choosers. Those that look at prompts and sessions have one `memory`, made when first needed."""

    __slots__ = ("_chance", "_max_bytes", "_news", "memory")

    def __init__(self, chance: random.Random, max_bytes: int) -> None:
        self._chance = chance
        self._max_bytes = max_bytes
        self._news: News | None = None
        self.memory: Memory | None = None

    def share(self, memory: Memory) -> None:
        """Use this memory, which other processes have, too; before any chooser is made."""
        self.memory = memory

    def tell(self, news: News) -> None:
        """Note there what is remembered from now on."""
        self._news = news
        if self.memory is not None:
            self.memory.news = news

    def make[E: Health](
        self, balance: str, endpoints: Sequence[E], concurrency: int, before: Chooser[E]
    ) -> Chooser[E]:
        """The chooser of that name; a name that is not known is one of a later version: `least`.

        `before` is the one that it replaces.
        """
        if balance == "round_robin":
            return RoundRobin(endpoints, concurrency, self._chance)
        if balance == "session":
            return StickyChooser(endpoints, concurrency, self._chance, self._remembering())
        if balance == "prefix":
            chooser = PrefixChooser(endpoints, concurrency, self._chance, self._remembering())
            if isinstance(before, PrefixChooser):
                chooser.follow(before)
            return chooser
        return Chooser(endpoints, concurrency, self._chance)

    def _remembering(self) -> Memory:
        if self.memory is None:
            self.memory = Memory.of(self._max_bytes)
            self.memory.news = self._news
        return self.memory


def read[E: Health](
    chooser: Chooser[E], headers: HeaderList, body: bytes, cache_key: str | None, user: str | None
) -> Affinity:
    """What this chooser is told of a request. Asked only if the chooser `reads`."""
    if isinstance(chooser, PrefixChooser):
        return affinity.prompt(body)
    return Affinity(session(headers, cache_key, user), (), 0)
