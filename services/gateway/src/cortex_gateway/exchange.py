"""Exchange: one request from its last byte in to its last byte out."""

from time import perf_counter, time
from typing import Final

from cortex_shared.logs import get_logger

from cortex_gateway import errors
from cortex_gateway.chunks import frame
from cortex_gateway.ending import Phase
from cortex_gateway.endpoint import Endpoint
from cortex_gateway.errors import ApiError
from cortex_gateway.key_limits import Hold, KeyLimits
from cortex_gateway.rerouting import Rerouting
from cortex_gateway.table import Route
from cortex_gateway.usage_record import UsageRecord
from cortex_gateway.wanted import Wanted

_log = get_logger("exchange")

_CLIENT_LEFT_STATUS: Final = 499
_PING: Final = b": ping\n\n"


class Exchange(Rerouting):
    """What the client and the clock say to a request. Runs in callbacks only."""

    __slots__ = ()

    # From the client.

    def start(self) -> None:
        """Read the request, find its route, begin the first attempt; or refuse."""
        own = self._gateway.next_request_id()
        self._shown = self._told_id or own.encode()
        id_header = self._hot.id_header
        if id_header is not None:
            self._extra = [(id_header, self._shown)]
        large = self._large
        gist = None if large is None else large.gist()
        wanted = self._read(gist)
        if type(wanted) is ApiError:  # compiled, isinstance() of what is not takes five times as long
            self._refuse(wanted)
            return
        model = wanted.model
        route = self._gateway.table.find(model)
        if route is None:
            if self._gateway.table.loaded:
                self._refuse(errors.unknown_model(model))
            else:
                self._refuse(errors.model_not_ready(model, "not known yet"))
            return
        self._route = route
        self._model = model
        problem = None if self._key.all_models else self._forbidden(wanted, route, gist)
        if route.reroutes:
            self._reroute(route, wanted)
        problem = problem or self._shape(wanted)
        if problem is not None:
            self._refuse(problem)
            return
        if self._key.limits is None or self._limited(self._key.limits, wanted, own):
            self._go_on(own, wanted)

    def _go_on(self, own: str, wanted: Wanted) -> None:
        self._accept(own)
        if self._route.chooser.reads:
            self._bind(wanted)
        if wanted.previous_response_id is None:
            self._begin()
        else:
            others = self._others(wanted.previous_response_id)
            self._try(self._route.admit(others, affinity=self.affinity))

    def _begin(self) -> None:
        self._try(self._route.admit((), self._key.rank, self.affinity))

    def _forbidden(self, wanted: Wanted, route: Route, gist: bytes | None) -> ApiError | None:
        # Why a key for some models may not have this one.
        if not (self._key.allows(route.name) or self._key.allows(wanted.model)):
            return errors.forbidden_model(wanted.model)
        if self._doubles_model(gist):
            return errors.invalid_request("`model` is given twice.", param="model")
        return None

    def _read(self, gist: bytes | None) -> Wanted | ApiError:
        if gist is None:
            return self._hot.read(self._body)
        wanted = self._hot.read_gist(gist)
        return self._hot.read_whole(self._body) if wanted is None else wanted

    def _doubles_model(self, gist: bytes | None) -> bool:
        doubles = None if gist is None else self._hot.gist_doubles_model(gist)
        return self._hot.doubles_model(self._body) if doubles is None else doubles

    def _others(self, response: str) -> list[Endpoint]:
        # All engines but the one that keeps a response that goes on.
        owner = self._gateway.owners.find(response, self._key)
        if owner is None:
            return []
        endpoints = self._route.endpoints
        others = [endpoint for endpoint in endpoints if endpoint.instance != owner.instance]
        return others if len(others) < len(endpoints) else []

    def client_left(self) -> None:
        """The client is gone: the engine is let go in this very moment."""
        if self._phase is Phase.ASKING:
            self._phase = Phase.OVER
            self._let_go()
        elif self._phase is not Phase.OVER:
            self._end(_CLIENT_LEFT_STATUS if self._status == 0 else self._status, "client_left")

    # From the key's limits.

    def within(self) -> None:
        """The key has what this may use."""
        if self._phase is not Phase.ASKING:
            return
        self._received = perf_counter()  # what was waited for is no overhead
        try:
            self._go_on(*self._asked)
        except Exception as error:  # noqa: BLE001 (a bug must end this one request, not all that waited with it)
            _log.error("exchange.bug", error=repr(error))
            self.cut(errors.internal_error())

    def beyond(self, error: ApiError) -> None:
        """The key has not."""
        if self._phase is Phase.ASKING:
            self._refuse(error)

    def _limited(self, limits: KeyLimits, wanted: Wanted, own: str) -> bool:
        # Whether it may go on at once.
        most = wanted.max_completion_tokens or wanted.max_tokens or wanted.max_output_tokens
        hold = limits.admit(self._route.estimate.tokens(self._body_size(), most, wanted.n), self._begun, self)
        if not isinstance(hold, Hold):
            self._refuse(hold)
            return False
        self._hold = hold
        if not hold.taken:
            self._phase = Phase.ASKING
            self._asked = (own, wanted)
        return hold.taken

    def _accept(self, own: str) -> None:
        route, now = self._route, self._begun
        route.budget.request()
        route.stats.in_flight += 1
        self._counts = route.stats.operation(self._hot.operation)
        seconds = route.total_seconds
        if self._patience is not None and not self._stream:
            seconds = min(seconds, self._patience)  # who has given up reads no answer
        self._total_deadline = self._deadline = now + seconds
        self._record = UsageRecord(
            own,
            time(),
            route.model_id,
            route.name,
            self._hot.text,
            key_id=self._key.id,
            key_name=self._key.name,
            stream=self._stream,
        )
        # Before it goes to an engine: who is told of work by a write may do it before the writer goes on.
        self._row = self._gateway.recorder.begin(self._record)
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
        # What passes by the relay's own reader is seen by its tokens alone.
        tokens = relay.tokens if relay is not None else 0
        if self._heard or tokens != self._tokens_seen:
            self._heard = False
            self._tokens_seen = tokens
            self._quiet_since = now
            if relay is not None and relay.committed:
                self._deadline = now + self._route.limits.idle_seconds
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
