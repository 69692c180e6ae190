"""Endpoint: one engine as the gateway sees it: its address, its idle connections, what it did lately."""

import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cortex_shared.contracts.evidence import EndpointEvidence
from cortex_shared.contracts.routes import Endpoint as EndpointContract
from cortex_shared.engine_keys import engine_key

from cortex_gateway.balance import Health

if TYPE_CHECKING:
    from cortex_gateway.upstream import Connection

_TLS_PORT = 443
_PLAIN_PORT = 80


class Evidence:
    """What happened on an endpoint since it was last told."""

    __slots__ = ("connect_failures", "failures", "first_token_count", "first_token_sum", "successes")

    def __init__(self) -> None:
        self.successes = 0
        self.failures = 0
        self.connect_failures = 0
        self.first_token_sum = 0.0
        self.first_token_count = 0

    @property
    def any(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.successes or self.failures or self.connect_failures or self.first_token_count)


class Endpoint(Health):
    """One engine. Lives across routing tables for as long as its instance, address and key stay the same."""

    __slots__ = (
        "_heads",
        "_host_header",
        "_key",
        "_prefix",
        "evidence",
        "host",
        "idle",
        "instance",
        "model",
        "port",
        "removed",
        "tls",
        "url",
    )

    def __init__(self, contract: EndpointContract, fleet_secret: str) -> None:
        """Raises ValueError when the URL is none."""
        super().__init__(contract.weight)
        parts = urlsplit(contract.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http address: {contract.url!r}")
        self.url = contract.url
        self.instance = contract.instance
        self.model = contract.model
        self.host = parts.hostname
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.port = parts.port or (_TLS_PORT if self.tls else _PLAIN_PORT)
        self._host_header = parts.netloc.rpartition("@")[2].encode()
        # People write an OpenAI base URL with or without its /v1.
        self._prefix = parts.path.rstrip("/").removesuffix("/v1").encode()
        self._key = contract.key or (engine_key(fleet_secret, contract.instance) if fleet_secret else "")
        self._heads: dict[bytes, bytes] = {}
        self.idle: list[Connection] = []
        self.evidence = Evidence()
        self.removed = False

    def head(self, path: bytes) -> bytes:
        """The fixed part of a POST's head, with the engine's own key."""
        head = self._heads.get(path)
        if head is None:
            key = b"authorization: Bearer %b\r\n" % self._key.encode() if self._key else b""
            head = b"POST %b%b HTTP/1.1\r\nhost: %b\r\n%b" % (self._prefix, path, self._host_header, key)
            self._heads[path] = head
        return head

    def take_idle(self, not_before: float) -> "Connection | None":
        """The connection that was used last, if it has been idle since `not_before` at the longest."""
        while self.idle:
            connection = self.idle.pop()
            if connection.idle_since >= not_before and not connection.closed:
                return connection
            connection.close()
        return None

    def close_idle(self, before: float) -> None:
        """Close connections that are idle since before `before`."""
        idle = self.idle
        while idle and idle[0].idle_since < before:
            idle.pop(0).close()

    def tell(self) -> EndpointEvidence:
        """The evidence so far, which is then forgotten."""
        seen, self.evidence = self.evidence, Evidence()
        mean = seen.first_token_sum / seen.first_token_count if seen.first_token_count else None
        return EndpointEvidence(
            instance=self.instance,
            successes=seen.successes,
            failures=seen.failures,
            connect_failures=seen.connect_failures,
            in_flight=self.outstanding,
            first_token_seconds=mean,
        )
