"""Rerouting: other models than the one that was asked for, by the route's policy: shares, and fallbacks."""

import random
from typing import Final

from msgspec import UNSET

from cortex_gateway import body as request_body
from cortex_gateway import choosing, errors
from cortex_gateway.answering import Answering
from cortex_gateway.ending import Phase
from cortex_gateway.errors import ApiError
from cortex_gateway.sessions import session
from cortex_gateway.table import Route
from cortex_gateway.wanted import StreamOptions, Wanted

SHOWN: Final = b"x-cortex-model"


class Rerouting(Answering):
    """Brings a request into the words of whatever route serves it. `_wanted` and `_given` are as it came."""

    __slots__ = ()

    def _reroute(self, route: Route, wanted: Wanted) -> None:
        policy = route.contract.policy
        if policy.splits:
            self._route = self._split(route, session(self._headers, wanted.prompt_cache_key, wanted.user))
        if policy.fallbacks:
            self._spares, self._wanted, self._given = list(policy.fallbacks), wanted, self._body

    def _split(self, route: Route, session: int) -> Route:
        # Whose share it is. A session always has the same point in [0, 1), so that it stays where it is.
        point = (session % 1_000_003) / 1_000_003 if session else random.random()
        for share in route.contract.policy.splits:
            point -= share.share
            if point < 0:
                other = self._gateway.table.find(share.to)
                if other is not None and other.endpoints:
                    self._extra = [*self._extra, (SHOWN, other.name.encode())]
                    return other
                return route
        return route

    def _shape(self, wanted: Wanted) -> ApiError | None:
        # The body as the route's engine is to get it, or why it cannot.
        hot = self._hot
        self._path = hot.path
        if hot.differs or wanted.special or self._route.adapts_all:
            problem = self._fit(wanted)
            if problem is not None:
                return problem
        self._stream = bool(wanted.stream) and hot.streams
        if self._stream and hot.asks_usage:
            options = wanted.stream_options
            self._hide_usage = not (isinstance(options, StreamOptions) and options.include_usage)
            if self._hide_usage:
                large = self._large
                if large is None or not (options is UNSET and large.add_field(request_body.USAGE_FIELD)):
                    self._body = request_body.with_usage(self._body, options)
        return None

    def _fit(self, wanted: Wanted) -> ApiError | None:
        # The engine's path and words for what is wanted, or why it cannot have them.
        hot, route = self._hot, self._route
        path = hot.at.get(route.contract.engine, hot.path)
        if path is None:
            return errors.not_offered(wanted.model, hot.text)
        self._path = path
        previous = wanted.previous_response_id
        if previous is not None and hot.remembers:
            owner = self._gateway.owners.find(previous, self._key)
            if owner is not None and not owner.is_for(self._key):
                return errors.unknown_response(previous)
        fit = hot.fit
        if fit is None or not (wanted.special or hot.fit_all or route.dialect.always):
            return None
        fitted = fit(self._body, route.dialect)
        if isinstance(fitted, ApiError):
            return fitted
        self._body, ignored = fitted
        if ignored:
            self._extra = [*self._extra, (b"x-cortex-ignored", ", ".join(ignored).encode())]
        return None

    def _bind(self, wanted: Wanted) -> None:
        # What the route's chooser wants to know of it.
        self.affinity = choosing.read(
            self._route.chooser, self._headers, self._body, wanted.prompt_cache_key, wanted.user
        )

    def _fall_back(self) -> bool:
        if self._gateway.time() >= self._total_deadline:
            return False
        while self._spares:
            other = self._gateway.table.find(self._spares.pop(0))
            if other is not None and other is not self._route and other.endpoints and self._move(other):
                self._begin()
                return True
        return False

    def _move(self, other: Route) -> bool:
        # Everything that was had of one route is given back, and the other's is taken.
        assert self._wanted is not None
        if self._phase is Phase.WAITING:
            self._leave_line()
        slot, self._slot = self._slot, None
        self._drop_connection()
        if self.affinity is not None:
            self.affinity.over()
        if slot is not None:
            slot.release()
        before = self._route, self._body, self._extra
        self._phase, self._route, self._body = Phase.ACCEPTED, other, self._given
        shown = (SHOWN, other.name.encode())
        self._extra = [header for header in self._extra if header[0] not in (SHOWN, b"x-cortex-ignored")]
        self._extra.append(shown)
        if self._shape(self._wanted) is not None:
            self._route, self._body, self._extra = before
            return False
        before[0].stats.in_flight -= 1
        other.stats.in_flight += 1
        other.budget.request()
        self._counts = other.stats.operation(self._hot.operation)
        self.affinity = None
        if other.chooser.reads:
            self._bind(self._wanted)
        self._record.move(other.contract.model_id, other.name)
        self._tried, self._resent = [], False
        self._attempts_before = self._attempts
        return True

    def _begin(self) -> None:
        raise NotImplementedError
