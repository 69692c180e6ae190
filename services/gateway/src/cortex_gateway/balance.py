"""Which engine gets a request: least outstanding, or in turn; broken ones are passed over a while. Pure."""

import random
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import ClassVar, Final, Protocol

_EJECT_SECONDS = (0.5, 15.0)
_BUSY_SECONDS: Final = 1.0
# An engine that has just said 429 or 503 counts as this many requests busier.
_BUSY_LOAD: Final = 8
# In place of no weight at all: such an endpoint is taken when there is no other.
WEIGHT_MIN: Final = 1e-6
BOUND: Final = 1.25
# Requests that an endpoint may have beyond the bound: of a handful, one more is no overload.
BOUND_SPARE: Final = 4
_SURPRISE_MIN_BYTES: Final = 4096
_SURPRISES_MAX: Final = 4


class SharedSlots(Protocol):
    """An endpoint's slots, of which other gateways have some."""

    def released(self) -> None:
        """A request has ended there."""
        ...

    def wanted(self) -> None:
        """A request stands in line."""
        ...

    def set_limit(self, limit: int) -> None:
        """How many there are for all gateways."""
        ...


class Health:
    """What the gateway has learned about one endpoint. Times are of the event loop's clock, in seconds.

    Failing to connect ejects for a short time that doubles with each failure; when it is over one request
    probes (half-open) and its end decides. 429 and overload only weigh the endpoint down.
    """

    __slots__ = (
        "busy_until",
        "cap",
        "counts_cached",
        "ejected_until",
        "ejections",
        "elsewhere",
        "failures",
        "outstanding",
        "prefill_bytes",
        "probing",
        "room",
        "salt",
        "share",
        "surprises",
        "turn",
        "weight",
    )

    def __init__(self, weight: float, name: str = "") -> None:
        """`name`: the same for as long as what the engine has read before is still there."""
        self.weight = weight
        # Of prompts sent there whose first token is not back: bytes that its cache is not thought to have.
        self.prefill_bytes = 0
        self.share = 0.0  # of the route's recent requests, decayed by the request
        self.turn = 0.0  # how far its turn is, in turns
        # What is remembered of it is marked with this; the same in all processes.
        self.salt = int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) if name else _any_salt()
        self.counts_cached = False  # it has said how much of a prompt it had in its cache
        self.surprises = 0  # prompts in a row that it should have had in its cache, and had not
        self.outstanding = 0
        # Where there is a cap: how many requests it may have from here, who says so, and how many it has from
        # other gateways.
        self.room = 0
        self.cap: SharedSlots | None = None
        self.elsewhere = 0
        self.failures = 0
        self.ejected_until = 0.0
        self.ejections = 0
        self.busy_until = 0.0
        self.probing = False

    def failed(self, now: float) -> None:
        """A connection was refused, timed out, or died without an answer."""
        if now < self.ejected_until:
            return  # of the same outage: a hundred requests that break together are one failure
        first, last = _EJECT_SECONDS
        self.ejected_until = now + min(last, first * 2 ** min(self.failures, 10))
        self.failures += 1
        self.ejections += 1
        self.probing = False

    def overloaded(self, now: float) -> None:
        """The engine answered 429 or 503."""
        self.busy_until = now + _BUSY_SECONDS
        self.probing = False

    def answered(self) -> None:
        """The engine answered: it is well."""
        if self.failures:
            self.failures = 0
            self.ejected_until = 0.0
            self.probing = False

    def half_open(self, now: float) -> bool:
        """Whether the next request would be the probe of an endpoint that was ejected."""
        return self.failures > 0 and self.ejected_until <= now

    def closed(self, now: float) -> bool:
        """Whether requests pass it over for now."""
        return self.ejected_until > now or (self.failures > 0 and self.probing)


def _any_salt() -> int:
    return random.getrandbits(64)


class Affinity:
    """What of a request says where it should go, and what its choice made of it.

    `session`: a hash of the session that it names; 0: none. `blocks`: hashes of its prompt's beginnings, of
    growing lengths, `size` bytes in all. `known`: how many of those the chosen endpoint was thought to have.
    """

    __slots__ = ("_booked", "_endpoint", "blocks", "known", "session", "size")

    def __init__(self, session: int, blocks: Sequence[int], size: int) -> None:
        self.session = session
        self.blocks = blocks
        self.size = size
        self.known = 0
        self._endpoint: Health | None = None
        self._booked = 0

    def book(self, endpoint: Health, size: int) -> None:
        """It goes there, where `size` bytes must be read."""
        self._endpoint = endpoint
        self._booked = size
        endpoint.prefill_bytes += size

    def over(self) -> None:
        """Its prompt has been read, or will not be: it is no such load any more. Once more does nothing."""
        if self._booked:
            assert self._endpoint is not None
            self._endpoint.prefill_bytes -= self._booked
            self._booked = 0

    def told(self, cached_tokens: int | None) -> None:
        """What the engine says of how much of the prompt it had in its cache.

        Some in a row that it should have had and had nothing of: its cache is empty (it restarted behind the
        same address) or it keeps none. What is remembered of it is forgotten. vLLM leaves a count of 0 out:
        None is one from an engine that has counted before.
        """
        endpoint = self._endpoint
        if endpoint is None:
            return
        if cached_tokens:
            endpoint.surprises = 0
            endpoint.counts_cached = True
        elif (
            (cached_tokens is not None or endpoint.counts_cached)
            and self.known >= _SURPRISE_MIN_BYTES
            and 2 * self.known >= self.size
        ):
            endpoint.surprises += 1
            if endpoint.surprises >= _SURPRISES_MAX:
                endpoint.surprises = 0
                endpoint.salt = _any_salt()


class Chooser[E: Health]:
    """Picks from a route's endpoints: the least outstanding for its weight, ties at random.

    `concurrency` caps what one endpoint gets at a time; 0: no cap. `reads` says whether it looks at requests:
    others are given no affinity.
    """

    __slots__ = ("_random", "concurrency", "endpoints")

    reads: ClassVar[bool] = False

    def __init__(self, endpoints: Sequence[E], concurrency: int, chance: random.Random) -> None:
        self.endpoints = endpoints
        self.concurrency = concurrency
        self._random = chance
        for endpoint in endpoints:
            if endpoint.cap is None:
                endpoint.room = concurrency

    def pick(self, now: float, tried: Collection[E] = (), affinity: Affinity | None = None) -> E | None:
        """The endpoint for one more request, None when none has room (or all were tried).

        When all that are left are ejected the one nearest to its end is taken: a request on an engine that
        is probably dead beats a refusal. An endpoint that is returned is the request's: it is booked there.
        """
        endpoints = self.endpoints
        if len(endpoints) == 1 and not tried:
            only = endpoints[0]
            return only if self.has_room(only) else None
        return self._least(self._open(now, tried), now)

    def has_room(self, endpoint: E) -> bool:
        """Whether the cap lets the endpoint have one more request."""
        return self.concurrency == 0 or endpoint.outstanding < endpoint.room

    def _open(self, now: float, tried: Collection[E]) -> list[E]:
        # Those that may have it.
        left = [e for e in self.endpoints if e not in tried] if tried else self.endpoints
        found = [e for e in left if not (e.failures and e.closed(now))]
        if not found and left:
            found = [min(left, key=lambda e: e.ejected_until)]
        if self.concurrency:
            found = [e for e in found if e.outstanding < e.room]
        return found

    def _least(self, candidates: Sequence[E], now: float) -> E | None:
        best: list[E] = []
        least = float("inf")
        for endpoint in candidates:
            busy = _BUSY_LOAD if endpoint.busy_until > now else 0
            load = (endpoint.outstanding + 1 + busy) / (endpoint.weight or WEIGHT_MIN)
            if load < least:
                least, best = load, [endpoint]
            elif load == least:
                best.append(endpoint)
        if not best:
            return None
        return best[0] if len(best) == 1 else self._random.choice(best)

    def _bounded(self, candidates: list[E], now: float) -> list[E]:
        # Those that affinity may choose: not overloaded, and with 1.25 of the mean at most and a handful.
        # If that is none, all.
        outstanding = 1
        weights = 0.0
        for endpoint in self.endpoints:
            outstanding += endpoint.outstanding
            weights += endpoint.weight
        each = BOUND * outstanding / (weights or WEIGHT_MIN)
        found = [
            e for e in candidates if e.outstanding < each * e.weight + BOUND_SPARE and e.busy_until <= now
        ]
        return found or candidates


class RoundRobin[E: Health](Chooser[E]):
    """In turn, as often as weights say, spread evenly: each gains its weight, the most is taken and pays."""

    __slots__ = ()

    def pick(self, now: float, tried: Collection[E] = (), affinity: Affinity | None = None) -> E | None:
        """As Chooser.pick."""
        del affinity
        candidates = self._open(now, tried)
        candidates = [e for e in candidates if e.busy_until <= now] or candidates
        if not candidates:
            return None
        total = 0.0
        for endpoint in candidates:
            weight = endpoint.weight or WEIGHT_MIN
            endpoint.turn += weight
            total += weight
        chosen = max(candidates, key=_turn)
        chosen.turn -= total
        return chosen


def _turn(endpoint: Health) -> float:
    return endpoint.turn


class RetryBudget:
    """Attempts that a route may add: a share of its requests, and a burst."""

    __slots__ = ("_burst", "_left", "_share")

    def __init__(self, share: float, burst: float) -> None:
        self._share = share
        self._burst = burst
        self._left = burst

    def request(self) -> None:
        """A request came."""
        if self._left < self._burst:
            self._left = min(self._burst, self._left + self._share)

    def take(self) -> bool:
        """Whether one more attempt may be made; it is then spent."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
