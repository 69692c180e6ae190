"""PrefixChooser: where a prompt will be read soonest, by what each engine has read before. Pure."""

import random
from collections.abc import Collection, Sequence
from typing import ClassVar, Final, Self

from cortex_gateway.affinity import ENDS, Memory
from cortex_gateway.balance import BOUND, BOUND_SPARE, WEIGHT_MIN, Affinity, Chooser, Health

# Reading what an engine does not have delays those that come after, and takes room in its cache from what
# they would find there: so many times its own time on top.
_BURDEN: Final = 3.0
# What a request costs beside reading its prompt, and while it is answered, in bytes of prompt.
_REQUEST_BYTES: Final = 512
_RUNNING_BYTES: Final = 256
# How much dearer, in usual prompts, an endpoint is that has its share; twice that with twice its share, and
# so on up to this many times.
_LEAN: Final = 3.0
_SHARE_MAX: Final = 4.0
# Requests per endpoint over which shares are counted, and requests over which a usual prompt is found.
_SHARE_REQUESTS: Final = 64
_MEAN_REQUESTS: Final = 64
_STEP_MAX: Final = 1e12
# Overloaded: dearer than any that is not.
_OVER: Final = 1e15


class PrefixChooser[E: Health](Chooser[E]):
    """The least of: bytes to be read before it, for the weight, + what must be read of it, with its burden.

    Nothing is asked of engines: what was sent there is what they have. An endpoint that gets more than its
    share is a little dearer, the more so the more is going on: so work spreads where it costs little to move,
    and an endpoint that gets nothing is tried. One that is overloaded (429, or beyond the bound of the load)
    is taken when all are.
    """

    __slots__ = ("_mean_bytes", "_memory", "_step")

    reads: ClassVar[bool] = True

    def __init__(
        self, endpoints: Sequence[E], concurrency: int, chance: random.Random, memory: Memory
    ) -> None:
        """`memory` may be shared with other routes."""
        super().__init__(endpoints, concurrency, chance)
        self._memory = memory
        self._mean_bytes = 4096.0  # of prompts, lately
        self._step = 1.0  # what a request counts in shares: ever more, in place of all others ever less

    def follow(self, before: Self) -> None:
        """Take over what one before this, with other endpoints, had learned."""
        self._mean_bytes, self._step = before._mean_bytes, before._step

    def pick(self, now: float, tried: Collection[E] = (), affinity: Affinity | None = None) -> E | None:
        """As Chooser.pick; without a prompt the least outstanding."""
        if affinity is None:
            return super().pick(now, tried)
        affinity.over()
        outstanding, weights, shares = 1, 0.0, 0.0
        for endpoint in self.endpoints:
            outstanding += endpoint.outstanding
            weights += endpoint.weight
            shares += endpoint.share
        weights = weights or WEIGHT_MIN
        bound = BOUND * outstanding / weights
        # What a weight's worth of the recent requests costs; little while little is going on.
        lean = _LEAN * self._mean_bytes * min(1.0, (outstanding - 1) / max(1, len(self.endpoints)))
        lean_each = lean * weights / shares if shares else 0.0
        blocks, size, depth_on = affinity.blocks, affinity.size, self._memory.depth
        chosen: E | None = None
        least, depth, equals = float("inf"), 0, 1
        for endpoint in self._open(now, tried):
            known = depth_on(blocks, endpoint.salt) if blocks else 0
            weight = endpoint.weight or WEIGHT_MIN
            before = endpoint.prefill_bytes + _RUNNING_BYTES * endpoint.outstanding + _REQUEST_BYTES
            cost = before / weight + (1 + _BURDEN) * (size - ENDS[known])
            cost += min(_SHARE_MAX * lean, lean_each * endpoint.share / weight)
            if endpoint.outstanding >= bound * weight + BOUND_SPARE or endpoint.busy_until > now:
                cost += _OVER
            if cost < least:
                least, chosen, depth, equals = cost, endpoint, known, 1
            elif cost == least:
                equals += 1
                if self._random.random() * equals < 1:
                    chosen, depth = endpoint, known
        if chosen is not None:
            self._take(chosen, affinity, depth)
        return chosen

    def _take(self, chosen: E, affinity: Affinity, depth: int) -> None:
        affinity.known = ENDS[depth]
        affinity.book(chosen, affinity.size - affinity.known + _REQUEST_BYTES)
        self._memory.put_all(affinity.blocks, depth, chosen.salt)
        self._mean_bytes += (affinity.size - self._mean_bytes) / _MEAN_REQUESTS
        chosen.share += self._step
        self._step *= 1 + 1 / (_SHARE_REQUESTS * len(self.endpoints))
        if self._step > _STEP_MAX:
            for endpoint in self.endpoints:
                endpoint.share /= self._step
            self._step = 1.0
