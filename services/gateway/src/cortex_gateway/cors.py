"""CORS: which web pages may call the gateway, and what their scripts may read of an answer."""

from collections.abc import Sequence

from cortex_gateway.wire import HeaderList, find

_EXPOSED = b", ".join(
    (
        b"x-request-id",
        b"request-id",
        b"retry-after",
        b"x-should-retry",
        b"x-cortex-ignored",
        b"x-cortex-model",
        b"x-cortex-overhead-us",
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-limit-tokens",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-remaining-tokens",
        b"x-ratelimit-reset-requests",
        b"x-ratelimit-reset-tokens",
    )
)
_PREFLIGHT_SECONDS = 3600


class Cors:
    """The headers for the origins that are allowed; keys travel in headers, so no credentials are."""

    __slots__ = ("_any", "_origins")

    def __init__(self, origins: Sequence[str]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origin.rstrip("/").encode() for origin in origins)

    def headers(self, asked: HeaderList) -> HeaderList:
        """What an answer to a request with these headers gets besides."""
        origin = find(asked, b"origin")
        if origin is None or not (self._any or origin in self._origins):
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]

    def preflight(self, asked: HeaderList, methods: bytes) -> HeaderList:
        """What the answer to OPTIONS gets besides `headers`; `methods` are those that the path has."""
        if find(asked, b"access-control-request-method") is None:
            return []
        wanted = find(asked, b"access-control-request-headers")
        allowed = [(b"access-control-allow-headers", wanted)] if wanted else []
        return [
            (b"access-control-allow-methods", methods),
            *allowed,
            (b"access-control-max-age", b"%d" % _PREFLIGHT_SECONDS),
        ]
