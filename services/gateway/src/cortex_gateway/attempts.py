"""Attempts: a slot in a route's line, a connection, the request on it; another engine when one fails."""

from time import perf_counter

from cortex_shared.logs import get_logger

from cortex_gateway import errors
from cortex_gateway.dialect import VLLM
from cortex_gateway.ending import Ending, Phase
from cortex_gateway.endpoint import Endpoint
from cortex_gateway.errors import ApiError
from cortex_gateway.table import Slot
from cortex_gateway.upstream import Connection
from cortex_gateway.wire import find, passed_lines, request_head

_log = get_logger("attempts")


class Attempts(Ending):
    """Asks one engine after the other, until one answers."""

    __slots__ = ()

    # From the client.

    def pause(self) -> None:
        """The client takes no more for now."""
        if self._connection is not None:
            self._paused = True
            self._connection.pause()

    def resume(self) -> None:
        """The client takes more again."""
        if self._paused:
            self._paused = False
            self._heard = True
            if self._connection is not None:
                self._connection.resume()

    # From the line.

    def admitted(self, slot: Slot) -> None:
        """A slot came free."""
        self._waited()
        self._received = perf_counter()
        self._begin_attempt(slot)

    def unrouted(self) -> None:
        """The route went while this waited."""
        self._waited()
        self._give_up(errors.unknown_model(self._model), "rejected")

    def _try(self, slot: Slot | None) -> None:
        if slot is not None:
            self._begin_attempt(slot)
            return
        route = self._route
        if not route.endpoints:
            self._give_up(errors.model_not_ready(self._model, route.contract.state), "rejected")
        elif len(route.waiting) >= route.contract.policy.queue_max:
            self._give_up(errors.queue_full(self._model), "rejected")
        else:
            self._phase = Phase.WAITING
            self._queued_at = self._gateway.time()
            self._deadline = self._queued_at + route.contract.policy.queue_seconds
            route.stats.waiting += 1
            route.wait(self, self._key.id, self._key.rank)

    def _begin_attempt(self, slot: Slot) -> None:
        self._slot = slot
        self._attempts += 1
        self._record.instance = slot.endpoint.instance
        endpoint = slot.endpoint
        connection = self._gateway.pool.take(endpoint)
        if connection is None:
            self._overhead = perf_counter() - self._received
            self._connect()
        else:
            self._send(connection)
            if self._attempts == 1 and self._phase is Phase.SENT:
                self._overhead = perf_counter() - self._received
                self._route.stats.overhead.observe(self._overhead)

    def _connect(self) -> None:
        assert self._slot is not None
        self._phase = Phase.CONNECTING
        seconds = self._route.limits.connect_seconds
        self._dial = self._gateway.dialler.dial(self._slot.endpoint, seconds, self._connected)

    def _connected(self, connection: Connection | None) -> None:
        self._dial = None
        if connection is None or connection.closed:
            endpoint = self._endpoint()
            endpoint.failed(self._gateway.time())
            endpoint.evidence.connect_failures += 1
            self._gateway.evidence_urgent()
            self._try_elsewhere(errors.engine_unreachable(self._model))
            return
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        self._phase = Phase.SENT
        self._connection = connection
        self._relay = None
        now = self._gateway.time()
        self._quiet_since = now
        if self._stream:
            self._deadline = min(now + self._route.first_token_seconds, self._total_deadline)
        else:
            self._deadline = self._total_deadline
        try:
            head, body = self._written()
            large = self._large if body is None else None
        except Exception as error:  # noqa: BLE001 (a bug must end this one request, not who gave it its slot)
            _log.error("attempts.bug", error=repr(error))
            self._give_up(errors.internal_error())
            return
        if large is not None:
            connection.send_pieces(self, head, large.buffers())
        else:
            connection.send(self, head, body or b"")
        if self._client.congested:
            self.pause()

    def _written(self) -> tuple[bytes, bytes | None]:
        # (head, body); None: a large body that goes as it came.
        endpoint = self._endpoint()
        model = self._route.name if endpoint.model is None else endpoint.model
        body = None
        if model != self._model or self._hot.remembers or self._large is None:
            body = self._body
            if model != self._model:
                body = self._hot.with_model(body, model)
            if self._hot.remembers:
                body = self._named(body, endpoint)
        passed = self._passed
        if passed is None:
            passed = self._passed = passed_lines(self._headers, self._hot.content_type(self._headers))
        fixed = endpoint.head(self._path)
        size = self._body_size() if body is None else len(body)
        return request_head(fixed, passed, self._record.request_id.encode(), size), body

    def _named(self, body: bytes, endpoint: Endpoint) -> bytes:
        # vLLM lets the caller name a response: with a name of ours, any gateway knows where it is.
        if self._route.contract.engine != VLLM or b'"request_id"' in body:
            return body
        end = body.rindex(b"}")
        name = self._gateway.owners.name(endpoint.instance, self._key).encode()
        return b'%b,"request_id":"%b"%b' % (body[:end], name, body[end:])

    def _try_elsewhere(self, error: ApiError) -> None:
        # An attempt failed before any content was sent on: another engine, or the end.
        slot = self._slot
        assert slot is not None
        if self._span is not None:
            self._span.event(
                "attempt failed", {"cortex.instance": slot.endpoint.instance, "error.type": error.reason}
            )
        self._drop_connection()
        self._kind = b""
        self._tried.append(slot.endpoint)
        self._slot = None
        slot.release()
        if self._may_retry() and self._route.budget.take():
            other = self._route.admit(self._tried, affinity=self.affinity)
            if other is not None:
                self._route.stats.retries += 1
                self._begin_attempt(other)
                return
        self._give_up(error)

    def _may_retry(self) -> bool:
        if self._attempts - self._attempts_before >= self._gateway.settings.upstream.attempts_max:
            return False
        if all(endpoint in self._tried for endpoint in self._route.endpoints):
            return False
        # A client that retries has already multiplied the request: do not multiply it again.
        return (find(self._headers, b"x-stainless-retry-count") or b"0") == b"0"
