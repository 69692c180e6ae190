"""Answering: what an engine says on its way to the client, and what of it counts as a failure."""

from cortex_gateway import errors, sse
from cortex_gateway.attempts import Attempts
from cortex_gateway.chunks import frame, payload
from cortex_gateway.ending import Phase
from cortex_gateway.owners import Owner
from cortex_gateway.paths import Relay
from cortex_gateway.typed import PassRelay
from cortex_gateway.upstream import Headers


class Answering(Attempts):
    """Passes on one engine's answer."""

    __slots__ = ()

    def on_bug(self) -> None:
        """The gateway failed on the answer: a bug."""
        if self._phase is Phase.OVER:
            self._client.cut()
        else:
            self._give_up(errors.internal_error())

    def on_head(self, status: int, headers: Headers) -> None:
        """The engine's answer begins."""
        self._heard = True
        self._status = status
        self._endpoint().answered()
        kind = headers.get(b"content-type", b"")
        if self._stream and status == 200 and kind.startswith(b"text/event-stream"):
            self._relay = self._hot.relay(
                chunked=self._chunked,
                hide_usage=self._hide_usage,
                event_max_bytes=self._gateway.settings.upstream.event_max_bytes,
            )
        elif self._hot.passes and status == 200 and not kind.startswith(b"application/json"):
            self._relay = PassRelay(chunked=self._chunked, events=kind.startswith(b"text/event-stream"))
            self._kind = kind

    def on_block(self, block: bytes, whole: bool, ended: bool) -> None:
        """Complete chunks of the answer."""
        relay = self._relay
        if relay is None:
            self._collect(payload(block), ended)
            return
        self._heard = True
        begun = relay.committed
        out = relay.block(block, whole) if block else b""
        if begun and out and not ended and relay.error is None:
            self._client.write(out)
        else:
            self._pass_on(relay, out, ended)

    def on_body(self, data: bytes, ended: bool) -> None:
        """A piece of an answer that is not chunked."""
        self._heard = True
        relay = self._relay
        if relay is None:
            self._collect(data, ended)
        else:
            self._pass_on(relay, relay.body(data), ended)

    def on_broken(self, answered: bool) -> None:
        """The engine's connection died."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.reused and not answered and not self._resent:
            # It had been closed on the engine's side while idle: nothing was processed there.
            self._resent = True
            self._route.stats.resends += 1
            if self._span is not None:
                self._span.event("resent", {"cortex.instance": self._endpoint().instance})
            self._connect()
            return
        self._count_failure()
        endpoint = self._endpoint()
        if not answered:
            endpoint.failed(self._gateway.time())
            self._gateway.evidence_urgent()
        if self._relay is not None and self._relay.committed:
            self._give_up(errors.stream_broke(self._model))
        else:
            self._try_elsewhere(errors.engine_unreachable(self._model))

    def _pass_on(self, relay: Relay, out: bytes, ended: bool) -> None:
        if ended:
            self._connection = None
            out += relay.end()
        if relay.error is not None and not relay.committed:
            # An error event before any content is as good as an answer with that status.
            self._engine_error(sse.status_of(relay.error), relay.error)
            return
        if relay.too_large:
            self._count_failure()
            self._give_up(errors.stream_broke(self._model))
            return
        if relay.committed and self._first_token is None:
            self._note_first_token()
        if relay.error is not None:
            # It was held back, to be told at once and in words that every client understands.
            self._count_failure()
            error = errors.from_engine(sse.status_of(relay.error), relay.error)
            self._give_up(error, before=out)
            return
        if not ended:
            if out:
                self._write(out)
            reader, connection = relay.quick_reader, self._connection
            if reader is not None and relay.committed and self._chunked and connection is not None:
                connection.read_by(reader, self._client.writer)
            return
        if not relay.complete:
            self._count_failure()
            if relay.committed:
                self._give_up(errors.stream_broke(self._model), before=out)
            else:
                self._try_elsewhere(errors.engine_unreachable(self._model))
            return
        if relay.failed:
            self._count_failure()
        else:
            self._endpoint().evidence.successes += 1
        self._end(200, "engine_failed" if relay.failed else "done", out)

    def _collect(self, data: bytes, ended: bool) -> None:
        if data:
            self._buffer.append(data)
            self._buffered += len(data)
            if self._buffered > self._gateway.response_max_bytes:
                self._count_failure()
                self._give_up(errors.engine_unreachable(self._model))
                return
        if not ended:
            return
        self._connection = None
        answer = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        if not 200 <= self._status < 300:
            self._engine_error(self._status if self._status >= 400 else 502, answer)
            return
        said = self._hot.answer(answer)
        if said.aborted:
            self._count_failure()
            self._try_elsewhere(errors.engine_unreachable(self._model))
            return
        self._endpoint().evidence.successes += 1
        if said.id is not None and self._hot.remembers:
            self._remember(said.id)
        if self._hot.edits:
            answer = self._edited(answer)
        if self._head_sent:
            # A ping has opened a stream, and the engine does not stream.
            if not self._hot.asks_usage:
                self._give_up(errors.stream_broke(self._model))  # of named events it cannot be made one
                return
            answer = b"data: " + answer + b"\n\n" + sse.DONE_EVENT
            answer = frame(answer) if self._chunked else answer
        self._end(self._status, "done", answer, said.usage)

    def _edited(self, answer: bytes) -> bytes:
        contract = self._route.contract
        edit = self._hot.edits.get(contract.engine)
        return answer if edit is None else edit(answer, contract.context_length)

    def _remember(self, response: str) -> None:
        # Which engine keeps a response, for whoever asks for it later.
        route, key = self._route.name, self._key
        self._gateway.owners.remember(response, Owner(route, self._endpoint().instance, key.id, key.name))

    def _engine_error(self, status: int, answer: bytes) -> None:
        error = errors.from_engine(status, answer)
        if error.message in errors.NO_SUCH_PATH and status in (404, 405):
            error = errors.not_offered(self._model, self._hot.text)
        elif status in (500, 501):
            status = error.status
        endpoint = self._endpoint()
        if status in (429, 503):
            endpoint.overloaded(self._gateway.time())
        if status == 429 or status >= 500 or status in (401, 403):
            if status not in (429, 503):
                self._count_failure()
            self._try_elsewhere(error)
            return
        endpoint.evidence.successes += 1
        self._give_up(error, "rejected")

    def _note_first_token(self) -> None:
        relay = self._relay
        if relay is not None and relay.id is not None and self._hot.remembers:
            self._remember(relay.id)
        if self.affinity is not None:
            self.affinity.over()
        seconds = self._gateway.time() - self._begun
        self._first_token = seconds
        self._counts.first_token.observe(seconds)
        evidence = self._endpoint().evidence
        evidence.first_token_sum += seconds
        evidence.first_token_count += 1
