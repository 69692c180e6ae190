"""Traces: W3C trace context passed on to engines, and one span for each traced request, sent as OTLP.

A request is traced if its client says so (`traceparent` with the flag sampled) or if chance picks it
(`trace.sample_share`), and spans are made only where there is somewhere to send them (`trace.otlp_endpoint`).
Otherwise a valid context passes to the engine as it came; one that is malformed does not pass.
"""

import random
import re
import secrets
import time
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import msgspec

from cortex_gateway.errors import ApiError
from cortex_gateway.settings import TraceSettings
from cortex_gateway.span_sender import SpanSender
from cortex_gateway.usage_record import UsageRecord

# Version, trace id, parent id, flags: https://www.w3.org/TR/trace-context/#traceparent-header. Of a version
# that is newer than this text the first four fields are the same.
_PARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_SAMPLED = 1
_KNOWN_FLAGS = 3  # sampled; random: the trace id's last bytes are
_EVENTS_MAX = 32
_SERVER = 2  # kinds and codes are OTLP's enums, in JSON as numbers
_ERROR = 2

type Headers = Iterable[tuple[bytes, bytes]]
type Attributes = dict[str, str | int | float | bool | None]


def read_parent(value: bytes) -> tuple[bytes, bytes, int] | None:
    """(trace id, parent id, flags) of a `traceparent`; None when it is malformed."""
    found = _PARENT.fullmatch(value.strip(b" \t"))
    if found is None or (found[1] == b"00" and found[5] is not None):
        return None
    return found[2], found[3], int(found[4], 16)


def _context(headers: Headers) -> tuple[bytes, bytes]:
    # (traceparent, tracestate): empty where there is none, or more than one parent.
    parents: list[bytes] = []
    states: list[bytes] = []
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value)
        elif name == b"tracestate" and value:
            states.append(value)
    return (parents[0] if len(parents) == 1 else b""), b",".join(states)


class Span:
    """One traced request under way."""

    __slots__ = ("_events", "began_ns", "id", "parent", "state", "trace")

    def __init__(self, trace: bytes, parent: bytes, state: bytes) -> None:
        self.trace = trace
        self.parent = parent
        self.state = state
        self.id = secrets.token_hex(8).encode()
        self.began_ns = time.time_ns()
        self._events: list[dict[str, Any]] = []

    def parent_line(self, flags: int) -> bytes:
        """A `traceparent` for whom it calls."""
        return b"00-%b-%b-%02x" % (self.trace, self.id, flags)

    def event(self, name: str, attributes: Attributes) -> None:
        """Something happened now."""
        if len(self._events) < _EVENTS_MAX:
            at = str(time.time_ns())
            self._events.append({"timeUnixNano": at, "name": name, "attributes": _pairs(attributes)})

    def encode(self, name: str, attributes: Attributes, failed: str) -> bytes:
        """The span, which ends now, as OTLP's JSON; `failed` says how, empty if it did not."""
        document: dict[str, Any] = {
            "traceId": self.trace.decode(),
            "spanId": self.id.decode(),
            "name": name,
            "kind": _SERVER,
            "startTimeUnixNano": str(self.began_ns),
            "endTimeUnixNano": str(time.time_ns()),
            "attributes": _pairs(attributes),
            "events": self._events,
            "status": {"code": _ERROR, "message": failed} if failed else {},
        }
        if self.parent:
            document["parentSpanId"] = self.parent.decode()
        if self.state:
            document["traceState"] = self.state.decode("latin-1")
        return msgspec.json.encode(document)


def _pairs(attributes: Attributes) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": _value(value)} for key, value in attributes.items() if value not in (None, "")
    ]


def _value(value: str | float | None) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": value}


class Tracer:
    """Decides what is traced; the sender's `run` must be among the process's tasks."""

    def __init__(self, settings: TraceSettings, process: str) -> None:
        self._exports = settings.otlp_endpoint is not None
        # Of 1: how many of the requests without a traceparent are traced. Most often 0: nothing is asked.
        self.share = settings.sample_share if self._exports else 0.0
        resource: Attributes = {
            "service.name": "cortex-gateway",
            "service.instance.id": process,
            "service.version": version("cortex-gateway"),
        }
        self.sender = SpanSender(settings, _pairs(resource), "cortex_gateway")

    def begin(self, headers: Headers) -> tuple[bytes, Span | None]:
        """(header lines for the engine, the span if the request is traced)."""
        told, state = _context(headers)
        parent = read_parent(told)
        if parent is not None:
            trace, above, flags = parent
            if not self._exports or not flags & _SAMPLED:
                return _lines(told, state), None
            span = Span(trace, above, state)
            return _lines(span.parent_line(flags & _KNOWN_FLAGS), state), span
        if self.share and random.random() < self.share:
            span = Span(secrets.token_hex(16).encode(), b"", b"")
            return _lines(span.parent_line(_SAMPLED), b""), span
        return b"", None

    def end(
        self,
        span: Span,
        record: UsageRecord,
        *,
        operation: str,
        model: str,
        engine: str,
        url: str,
        failure: str,
    ) -> None:
        """An accepted request is over: its span is to be sent.

        `model` is what the client asked for, `url` the engine's, `failure` empty if it was answered.
        """
        server = urlsplit(url)
        attributes: Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": engine,
            "gen_ai.request.model": model,
            "gen_ai.request.stream": record.stream,
            "gen_ai.response.time_to_first_chunk": record.first_token_seconds,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
            "server.address": server.hostname,
            "server.port": server.port,
            "cortex.request.id": record.request_id,
            "cortex.route": record.route,
            "cortex.instance": record.instance,
            "cortex.key.id": record.key_id,
            "cortex.key.name": record.key_name,
            "cortex.outcome": record.outcome,
            "cortex.attempts": record.attempts,
            "cortex.usage.source": record.source,
        }
        self._put(span, f"{operation} {record.route}", record.path, record.status, failure, attributes)

    def end_refused(self, span: Span, operation: str, path: str, error: ApiError) -> None:
        """A request is over that no route took."""
        attributes: Attributes = {"gen_ai.operation.name": operation}
        self._put(span, operation, path, error.status, error.reason, attributes)

    def _put(
        self, span: Span, name: str, path: str, status: int, failure: str, attributes: Attributes
    ) -> None:
        attributes["http.response.status_code"] = status
        attributes["url.path"] = path
        attributes["error.type"] = failure
        self.sender.put(span.encode(name, attributes, failed=failure if _is_failure(status, failure) else ""))


def _is_failure(status: int, failure: str) -> bool:
    # By OpenTelemetry's rules for HTTP servers what a client did wrong is no failure of the span.
    return bool(failure) and failure != "client_left" and not 400 <= status < 500


def _lines(parent: bytes, state: bytes) -> bytes:
    lines = b"traceparent: %b\r\n" % parent
    return lines + b"tracestate: %b\r\n" % state if state else lines
