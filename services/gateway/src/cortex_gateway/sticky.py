"""StickyChooser: a session stays where it is, until it must move. Pure."""

import random
from collections.abc import Collection, Sequence
from math import log
from typing import ClassVar, Final

from cortex_gateway.affinity import Memory
from cortex_gateway.balance import WEIGHT_MIN, Affinity, Chooser, Health

_WORD: Final = (1 << 64) - 1
_MIX: Final = 0xD6E8FEB86659FD93


class StickyChooser[E: Health](Chooser[E]):
    """Sessions spread by hash as weights say; each stays until its endpoint is gone, broken or overloaded.

    Where one begins is the same in all processes and after a restart; an endpoint that joins takes none away.
    """

    __slots__ = ("_memory",)

    reads: ClassVar[bool] = True

    def __init__(
        self, endpoints: Sequence[E], concurrency: int, chance: random.Random, memory: Memory
    ) -> None:
        """`memory` may be shared with other routes."""
        super().__init__(endpoints, concurrency, chance)
        self._memory = memory

    def pick(self, now: float, tried: Collection[E] = (), affinity: Affinity | None = None) -> E | None:
        """As Chooser.pick; without a session the least outstanding."""
        if affinity is None or not affinity.session:
            return super().pick(now, tried)
        candidates = self._open(now, tried)
        if not candidates:
            return None
        candidates = self._bounded(candidates, now)
        session, memory = affinity.session, self._memory
        for endpoint in candidates:
            if memory.has(session, endpoint.salt):
                return endpoint
        chosen = max(candidates, key=lambda endpoint: _draw(session, endpoint))
        for endpoint in self.endpoints:
            memory.drop(session, endpoint.salt)
        memory.put(session, chosen.salt)
        return chosen


def _draw(session: int, endpoint: Health) -> float:
    # Weighted rendezvous hashing: the most of weight / -ln(u), u even in (0, 1) per session and endpoint.
    mixed = ((session ^ endpoint.salt) * _MIX) & _WORD
    mixed ^= mixed >> 32
    mixed = (mixed * _MIX) & _WORD
    mixed ^= mixed >> 29
    return (endpoint.weight or WEIGHT_MIN) / -log((mixed + 1) / (_WORD + 2))
