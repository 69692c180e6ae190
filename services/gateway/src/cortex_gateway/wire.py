"""Bytes of heads: answers to clients, requests to engines, and which headers pass."""

import re
from http import HTTPStatus
from typing import Final

from cortex_gateway.keys import KEY_HEADERS

type HeaderList = list[tuple[bytes, bytes]]

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")

# Hop-by-hop headers, headers that the gateway writes itself, and credentials, which stay here.
_KEPT_BACK = frozenset(
    (
        *KEY_HEADERS,
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"host",
        b"content-length",
        b"content-type",
        b"accept-encoding",
        b"cookie",
        b"expect",
        b"x-request-id",
        b"forwarded",
        b"x-forwarded-for",
        b"traceparent",  # passes as `trace` has it
        b"tracestate",
        b"user-agent",
        b"x-stainless-arch",
        b"x-stainless-async",
        b"x-stainless-lang",
        b"x-stainless-os",
        b"x-stainless-package-version",
        b"x-stainless-read-timeout",
        b"x-stainless-retry-count",
        b"x-stainless-runtime",
        b"x-stainless-runtime-version",
        b"x-stainless-timeout",
    )
)


def status_line(status: int) -> bytes:
    """`HTTP/1.1 200 OK` with its line end."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status


JSON_TYPE: Final = b"application/json"

ANSWER_LINES: Final = b"content-type: application/json\r\nx-request-id: "
"""Of an answer in JSON: what stands between the headers that all have and the request's id."""


def passed_lines(headers: HeaderList, kind: bytes = JSON_TYPE) -> bytes:
    """The lines of a client's headers that an engine gets; `kind` is the type of what is sent."""
    parts: list[bytes] = []
    dropped: frozenset[bytes] | None = None
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            named = frozenset(token.strip().lower() for token in value.split(b","))
            dropped = named if dropped is None else dropped | named
    for name, value in headers:
        if name not in _KEPT_BACK and (dropped is None or name not in dropped):
            parts.append(b"%b: %b\r\n" % (name, value))
    parts.append(b"content-type: %b\r\nx-request-id: " % kind)
    return b"".join(parts)


def request_head(fixed: bytes, passed: bytes, request_id: bytes, length: int) -> bytes:
    """The head of a request to an engine: the endpoint's part, `passed_lines`, id and length."""
    return b"%b%b%b\r\ncontent-length: %d\r\n\r\n" % (fixed, passed, request_id, length)


def lines_of(headers: HeaderList) -> bytes:
    """Headers as lines of a head."""
    return b"".join(b"%b: %b\r\n" % header for header in headers) if headers else b""


def find(headers: HeaderList, name: bytes) -> bytes | None:
    """The first header of that name (lower case)."""
    for header, value in headers:
        if header == name:
            return value
    return None


def shown_id(headers: HeaderList, own: bytes) -> bytes:
    """The id that the client sees: its own `x-request-id` if that looks sane, else ours."""
    told = find(headers, b"x-request-id")
    return own if told is None else sane_id(told) or own


def sane_id(told: bytes) -> bytes | None:
    """A client's request id, if it may be repeated in an answer."""
    return told if _SANE_ID.match(told) else None
