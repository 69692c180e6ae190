"""Recall: a request for a response that one engine keeps; it goes there, or nowhere."""

from cortex_gateway import errors
from cortex_gateway.completions import EngineUsage
from cortex_gateway.exchange import Exchange
from cortex_gateway.paths import Relay, StoredPath
from cortex_gateway.usage_record import Outcome
from cortex_gateway.wire import JSON_TYPE, passed_lines, request_head


class Recall(Exchange):
    """GET and DELETE of /v1/responses/{id}, its input items, and its cancelling."""

    __slots__ = ()

    def start(self) -> None:
        """Find the engine that keeps the response, and ask it; or refuse."""
        own = self._gateway.next_request_id()
        self._shown = self._told_id or own.encode()
        stored = self._stored()
        owner = self._gateway.owners.find(stored.response, self._key)
        route = slot = None
        if owner is not None and owner.is_for(self._key):
            route = self._gateway.table.find(owner.route)
            slot = route.slot_of(owner.instance) if route is not None else None
        if route is None or slot is None:
            self._refuse(errors.unknown_response(stored.response))
            return
        self._route = route
        self._model = route.name
        self._stream = stored.streams
        self._accept(own)
        self._begin_attempt(slot)

    def _stored(self) -> StoredPath:
        assert isinstance(self._hot, StoredPath)
        return self._hot

    def _written(self) -> tuple[bytes, bytes]:
        stored = self._stored()
        fixed = self._endpoint().head_of(stored.method, stored.target)
        passed = self._passed or passed_lines(self._headers, JSON_TYPE)
        return request_head(fixed, passed, self._record.request_id.encode(), 0), b""

    def _may_retry(self) -> bool:
        return False

    def _fill(self, status: int, outcome: Outcome, usage: EngineUsage | None, relay: Relay | None) -> None:
        # What it tells of usage was counted when it was created.
        super()._fill(status, outcome, None, None)
