"""Which engine gets a request: least outstanding, random ties, broken ones passed over for a while. Pure."""

import random
from collections.abc import Collection, Sequence

_EJECT_SECONDS = (0.5, 15.0)
_BUSY_SECONDS = 1.0
# An engine that has just said 429 or 503 counts as this many requests busier.
_BUSY_LOAD = 8


class Health:
    """What the gateway has learned about one endpoint. Times are of the event loop's clock, in seconds.

    Failing to connect ejects for a short time that doubles with each failure; when it is over one request
    probes (half-open) and its end decides. 429 and overload only weigh the endpoint down.
    """

    __slots__ = ("busy_until", "ejected_until", "failures", "outstanding", "probing", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.outstanding = 0
        self.failures = 0
        self.ejected_until = 0.0
        self.busy_until = 0.0
        self.probing = False

    def failed(self, now: float) -> None:
        """A connection was refused, timed out, or died without an answer."""
        if now < self.ejected_until:
            return  # of the same outage: a hundred requests that break together are one failure
        first, last = _EJECT_SECONDS
        self.ejected_until = now + min(last, first * 2 ** min(self.failures, 10))
        self.failures += 1
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


class Chooser[E: Health]:
    """Picks from a route's endpoints. `concurrency` caps what one endpoint gets at a time; 0: no cap."""

    __slots__ = ("_random", "concurrency", "endpoints")

    def __init__(self, endpoints: Sequence[E], concurrency: int, chance: random.Random) -> None:
        self.endpoints = endpoints
        self.concurrency = concurrency
        self._random = chance

    def pick(self, now: float, tried: Collection[E] = ()) -> E | None:
        """The endpoint for one more request, None when none has room (or all were tried).

        When all that are left are ejected the one nearest to its end is taken: a request on an engine that
        is probably dead beats a refusal.
        """
        endpoints = self.endpoints
        if len(endpoints) == 1 and not tried:
            only = endpoints[0]
            return only if self.has_room(only) else None
        left = [endpoint for endpoint in endpoints if endpoint not in tried] if tried else endpoints
        candidates = [e for e in left if not e.closed(now)]
        if not candidates:
            candidates = [min(left, key=lambda e: e.ejected_until)] if left else []
        best: list[E] = []
        least = float("inf")
        for endpoint in candidates:
            if not self.has_room(endpoint):
                continue
            load = self._load(endpoint, now)
            if load < least:
                least, best = load, [endpoint]
            elif load == least:
                best.append(endpoint)
        if not best:
            return None
        return best[0] if len(best) == 1 else self._random.choice(best)

    def has_room(self, endpoint: E) -> bool:
        """Whether the cap lets the endpoint have one more request."""
        return self.concurrency == 0 or endpoint.outstanding < self.concurrency

    def _load(self, endpoint: E, now: float) -> float:
        busy = _BUSY_LOAD if endpoint.busy_until > now else 0
        return (endpoint.outstanding + 1 + busy) / max(endpoint.weight, 1e-6)


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
