"""A request as it comes in, and what is refused by its head alone."""

import urllib.parse
from typing import Any, Final, cast

import httptools

from cortex_gateway.errors import ApiError, invalid_request
from cortex_gateway.keys import Key, digest_of
from cortex_gateway.large_body import LargeBody, is_large
from cortex_gateway.paths import HOT_PATHS, STORED_PREFIX, HotPath, stored_path
from cortex_gateway.wire import HeaderList, passed_lines, sane_id

_PARTS_MAX: Final = 1024


# Headers by which OpenAI's clients for Python and Node say how long they wait for an answer.
_PATIENCE = (b"x-stainless-read-timeout", b"x-stainless-timeout")


class Head:
    """What was read out of a request's head that may come again. `passed`: its lines for the engine."""

    __slots__ = ("digest", "headers", "hot", "method", "passed", "patience", "url")

    def __init__(self, incoming: "Incoming") -> None:
        assert incoming.hot is not None
        self.method = incoming.method
        self.patience = incoming.patience
        self.url = incoming.url
        self.headers = incoming.headers
        self.hot = incoming.hot
        self.digest = digest_of(incoming.headers)
        self.passed = passed_lines(incoming.headers, self.hot.content_type(incoming.headers))


class Incoming:
    """One request as it comes in."""

    __slots__ = (
        "complete",
        "expects",
        "head_done",
        "headers",
        "hot",
        "http10",
        "keep_alive",
        "key",
        "method",
        "offers",
        "parts",
        "passed",
        "patience",
        "refusal",
        "size",
        "start",
        "stop",
        "told_id",
        "traceparent",
        "url",
    )

    def __init__(self) -> None:
        self.method = b""
        self.url = b""
        self.headers: HeaderList = []
        self.parts: list[bytes | bytearray] = []
        self.start = 0  # of the body in the first part, before which is its head
        self.stop = 0  # of the body in the last part, which has room for more; 0: all of it is
        self.size = 0
        self.head_done = False
        self.complete = False
        self.keep_alive = True
        self.http10 = False
        self.expects = False
        self.offers = False
        self.hot: HotPath | None = None
        self.key: Key | None = None
        self.refusal: ApiError | None = None
        self.passed: bytes | None = None
        self.patience: float | None = None  # seconds that the client says it waits for an answer
        self.told_id: bytes | None = None
        self.traceparent: bytes | None = None

    def take(self, head: Head) -> None:
        """Have a head that was read before."""
        self.method = head.method
        self.url = head.url
        self.headers = head.headers
        self.hot = head.hot
        self.passed = head.passed
        self.patience = head.patience
        self.head_done = True

    @property
    def may_come_again(self) -> bool:
        """Whether the head says nothing that is of this one request alone."""
        return (
            self.head_done
            and self.hot is not None
            and self.refusal is None
            and self.key is not None
            and self.keep_alive
            and self.told_id is None
            and self.traceparent is None
            and not self.expects
            and not self.offers
        )

    def add(self, piece: bytes) -> None:
        """Keep a piece of the body. Of chunks of two bytes each, a list would take 30 times their size."""
        parts = self.parts
        read_there, self.stop = self.stop > 0, 0
        if len(parts) < _PARTS_MAX:
            parts.append(piece)
        elif len(parts) == _PARTS_MAX or read_there:
            parts.append(bytearray(piece))
        else:
            cast("bytearray", parts[-1]).extend(piece)

    def take_body(self) -> bytes:
        """The pieces joined, once: an open connection does not keep the body of its last request."""
        parts, self.parts = self.parts, []
        if not parts:
            return b""
        first, start = parts[0], self.start
        if len(parts) == 1 and isinstance(first, bytes):
            return first[start:] if start else first
        return LargeBody(parts, start, self.stop, self.size).joined()

    def take_large_body(self) -> LargeBody | None:
        """The body in its pieces, if it is so large that they are better not joined; else `take_body`."""
        parts = self.parts
        if not is_large(len(parts), self.size):
            return None
        self.parts = []
        return LargeBody(parts, self.start, self.stop, self.size)


def check_head(incoming: Incoming, head_max_bytes: int) -> ApiError | None:
    """The error in a head that the parser let pass and a gateway must not. Notes what the client expects."""
    hosts = codings = 0
    size = len(incoming.url)
    for name, value in incoming.headers:
        size += len(name) + len(value) + 4
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            codings += 2 - (value.strip().lower() == b"chunked")
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            return invalid_request("Compressed request bodies are not taken.", status=415)
        elif name == b"x-request-id":
            incoming.told_id = sane_id(value)
        elif name in _PATIENCE:
            incoming.patience = _seconds(value)
        elif name == b"traceparent":
            incoming.traceparent = value
        elif name == b"expect":
            if value.strip().lower() != b"100-continue":
                return invalid_request("The only expectation is 100-continue.", status=417)
            incoming.expects = not incoming.http10
    if size > head_max_bytes:
        return head_too_large()
    if incoming.url not in HOT_PATHS and not _is_target(incoming.url):
        return invalid_request("The request's target is no path.")
    return _check_counts(hosts, codings, http10=incoming.http10)


def _check_counts(hosts: int, codings: int, *, http10: bool) -> ApiError | None:
    if codings > 1 or (codings and http10):
        return invalid_request("The only transfer coding is chunked, once, in HTTP/1.1.")
    if hosts != 1 and (hosts or not http10):
        return invalid_request("The header Host is missing, or given twice.")
    return None


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None


def head_too_large() -> ApiError:
    """431."""
    return invalid_request("The request's head is too large.", status=431)


def around_too_large() -> ApiError:
    """Chunk extensions, zeros before a size, trailers: a body has much around it and little in it."""
    return invalid_request("The request has too much around its body.", status=431)


def _is_target(url: bytes) -> bool:
    if not url.startswith((b"/", b"http://", b"https://")):
        return False
    try:
        httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return False
    return True


def target_of(url: bytes) -> tuple[bytes, bytes]:
    """(path, query) of a request's target, empty where there is none. Raises HttpParserInvalidURLError."""
    parsed: Any = httptools.parse_url(url)  # whose types do not say that its parts may be None
    return parsed.path or b"", parsed.query or b""


def hot_path(method: bytes, url: bytes) -> HotPath | None:
    """The hot path that a request's method and target name, however the target is spelled."""
    post = method == b"POST"
    hot = HOT_PATHS.get(url) if post else None
    if hot is not None or not (post or url.startswith(STORED_PREFIX)):
        return hot
    path, query = target_of(url)
    path = urllib.parse.unquote_to_bytes(path)
    hot = HOT_PATHS.get(path) if post else None
    return hot or stored_path(method, path, query)
