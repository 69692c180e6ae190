"""A request as it comes in, and what is refused by its head alone."""

import urllib.parse
from typing import cast

import httptools

from cortex_gateway.errors import ApiError, invalid_request
from cortex_gateway.keys import Key
from cortex_gateway.paths import HOT_PATHS, HotPath
from cortex_gateway.wire import HeaderList

_PARTS_MAX = 1024


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
        "refusal",
        "size",
        "url",
    )

    def __init__(self) -> None:
        self.method = b""
        self.url = b""
        self.headers: HeaderList = []
        self.parts: list[bytes | bytearray] = []
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

    def add(self, piece: bytes) -> None:
        """Keep a piece of the body. Of chunks of two bytes each, a list would take 30 times their size."""
        parts = self.parts
        if len(parts) < _PARTS_MAX:
            parts.append(piece)
        elif len(parts) == _PARTS_MAX:
            parts.append(bytearray(piece))
        else:
            cast("bytearray", parts[-1]).extend(piece)

    def body(self) -> bytes:
        """The pieces joined."""
        parts = self.parts
        return cast("bytes", parts[0]) if len(parts) == 1 else b"".join(parts)


def check_head(incoming: Incoming, head_max_bytes: int) -> ApiError | None:
    """The error in a head that the parser let pass and a gateway must not. Notes what the client expects."""
    has_host = False
    size = len(incoming.url)
    for name, value in incoming.headers:
        size += len(name) + len(value) + 4
        if name == b"host":
            has_host = True
        elif name == b"transfer-encoding" and (incoming.http10 or value.strip().lower() != b"chunked"):
            return invalid_request("The only transfer coding is chunked, in HTTP/1.1.")
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            return invalid_request("Compressed request bodies are not taken.", status=415)
        elif name == b"expect":
            if value.strip().lower() != b"100-continue":
                return invalid_request("The only expectation is 100-continue.", status=417)
            incoming.expects = not incoming.http10
    if size > head_max_bytes:
        return head_too_large()
    if not has_host and not incoming.http10:
        return invalid_request("The header Host is missing.")
    if incoming.url not in HOT_PATHS and not _is_target(incoming.url):
        return invalid_request("The request's target is no path.")
    return None


def head_too_large() -> ApiError:
    """431."""
    return invalid_request("The request's head is too large.", status=431)


def _is_target(url: bytes) -> bool:
    if not url.startswith((b"/", b"http://", b"https://")):
        return False
    try:
        httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return False
    return True


def hot_path(url: bytes) -> HotPath | None:
    """The hot path that a request's target names, however it spells it."""
    hot = HOT_PATHS.get(url)
    if hot is not None:
        return hot
    path = httptools.parse_url(url).path
    return HOT_PATHS.get(urllib.parse.unquote_to_bytes(path)) if path else None
