"""Exchange: one request from its last byte in to its last byte out."""

import time
from datetime import UTC, datetime

from cortex_gateway import body as request_body
from cortex_gateway import errors
from cortex_gateway.answering import Answering
from cortex_gateway.chunks import frame
from cortex_gateway.ending import Phase
from cortex_gateway.errors import ApiError
from cortex_gateway.meter import Record
from cortex_gateway.wire import shown_id

_CLIENT_LEFT_STATUS = 499
_PING = b": ping\n\n"


class Exchange(Answering):
    """What the client and the clock say to a request. Runs in callbacks only."""

    __slots__ = ()

    # From the client.

    def start(self) -> None:
        """Read the request, find its route, begin the first attempt; or refuse."""
        own = self._gateway.next_request_id()
        self._shown = shown_id(self._headers, own.encode())
        wanted = request_body.read(self._body)
        if isinstance(wanted, ApiError):
            self._refuse(wanted)
            return
        route = self._gateway.table.find(wanted.model)
        if route is None:
            if self._gateway.table.loaded:
                self._refuse(errors.unknown_model(wanted.model))
            else:
                self._refuse(errors.model_not_ready(wanted.model, "not known yet"))
            return
        if not self._key.all_models:
            if not (self._key.allows(route.name) or self._key.allows(wanted.model)):
                self._refuse(errors.forbidden_model(wanted.model))
                return
            if request_body.doubles_model(self._body):
                self._refuse(errors.invalid_request("`model` is given twice.", param="model"))
                return
        self._route = route
        self._model = wanted.model
        self._stream = bool(wanted.stream) and self._hot.streams
        if self._stream:
            options = wanted.stream_options
            self._hide_usage = not (options is not None and options.include_usage)
            if self._hide_usage:
                self._body = request_body.with_usage(self._body, options)
        self._accept(own)
        self._try(route.admit())

    def client_left(self) -> None:
        """The client is gone: the engine is let go in this very moment."""
        if self._phase is not Phase.OVER:
            self._end(_CLIENT_LEFT_STATUS if self._status == 0 else self._status, "client_left")

    def _accept(self, own: str) -> None:
        route, now = self._route, self._begun
        route.budget.request()
        route.stats.in_flight += 1
        limits = route.contract.policy.limits
        self._total_deadline = self._deadline = now + limits.total_seconds
        self._record = Record(
            request_id=own,
            started_at=datetime.fromtimestamp(time.time(), UTC),
            model_id=route.contract.model_id,
            route=route.name,
            path=self._hot.text,
            key_id=self._key.id,
            key_name=self._key.name,
            stream=self._stream,
        )
        self._row = self._gateway.meter.begin(self._record)
        self._phase = Phase.ACCEPTED
        self._gateway.open(self)

    # From the sweeper.

    def tick(self, now: float) -> None:
        """Look at the time limits."""
        if self._phase is Phase.WAITING:
            if now >= self._deadline:
                self._give_up(errors.queue_timeout(self._model), "rejected")
            else:
                self._route.look_again(self)
            return
        if now >= self._total_deadline:
            self._give_up(errors.engine_timeout(self._model, "for the whole answer"))
            return
        if self._phase is not Phase.SENT:
            return
        relay = self._relay
        if self._paused:
            return  # the protocol cuts a client that takes nothing for too long
        if self._heard:
            self._heard = False
            self._quiet_since = now
            if relay is not None and relay.committed:
                self._deadline = now + self._route.contract.policy.limits.idle_seconds
                return
        if now >= self._deadline:
            committed = relay is not None and relay.committed
            what = "between two tokens" if committed else "to begin its answer"
            self._count_failure()
            self._give_up(errors.engine_timeout(self._model, what))
            return
        ping = self._gateway.settings.upstream.ping_seconds
        if self._stream and self._chunked and ping and now - self._quiet_since >= ping:
            self._quiet_since = now
            self._write(frame(_PING))
