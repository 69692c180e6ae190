"""Answering: what an engine says on its way to the client, and what of it counts as a failure."""

from cortex_gateway import errors, sse
from cortex_gateway.attempts import Attempts
from cortex_gateway.chunks import frame, payload
from cortex_gateway.ending import Phase
from cortex_gateway.relay import StreamRelay
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
            self._relay = StreamRelay(
                chunked=self._chunked,
                hide_usage=self._hide_usage,
                event_max_bytes=self._gateway.settings.upstream.event_max_bytes,
            )

    def on_block(self, block: bytes, whole: bool, ended: bool) -> None:
        """Complete chunks of the answer."""
        relay = self._relay
        if relay is None:
            self._collect(payload(block), ended)
            return
        self._heard = True
        if relay.committed and not ended:
            out = relay.block(block, whole)
            if out:
                self._client.write(out)
            elif relay.too_large:
                self._count_failure()
                self._give_up(errors.stream_broke(self._model))
            return
        self._pass_on(relay, relay.block(block, whole) if block else b"", ended)

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

    def _pass_on(self, relay: StreamRelay, out: bytes, ended: bool) -> None:
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
        if not ended:
            if out:
                self._write(out)
            return
        if not relay.complete and relay.error is None:
            self._count_failure()
            if relay.committed:
                self._give_up(errors.stream_broke(self._model), before=out)
            else:
                self._try_elsewhere(errors.engine_unreachable(self._model))
            return
        failed = relay.error is not None
        if failed:
            self._count_failure()
        else:
            self._endpoint().evidence.successes += 1
        self._end(200, "engine_failed" if failed else "done", out)

    def _collect(self, data: bytes, ended: bool) -> None:
        if data:
            self._buffer.append(data)
            self._buffered += len(data)
            if self._buffered > self._gateway.settings.upstream.response_max_bytes:
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
        usage = sse.usage_of(answer)
        self._endpoint().evidence.successes += 1
        if self._head_sent:
            # A ping has opened a stream, and the engine does not stream.
            answer = b"data: " + answer + b"\n\n" + sse.DONE_EVENT
            answer = frame(answer) if self._chunked else answer
        self._end(self._status, "done", answer, usage)

    def _engine_error(self, status: int, answer: bytes) -> None:
        error = errors.from_engine(status, answer)
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
        seconds = self._gateway.time() - self._begun
        self._first_token = seconds
        self._route.stats.first_token.observe(seconds)
        evidence = self._endpoint().evidence
        evidence.first_token_sum += seconds
        evidence.first_token_count += 1
