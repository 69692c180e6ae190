"""Endpoint: one engine as the gateway sees it: its address, its idle connections, what it did lately."""

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cortex_shared.contracts.evidence import EndpointEvidence
from cortex_shared.contracts.routes import Endpoint as EndpointContract
from cortex_shared.endpoint_keys import unseal
from cortex_shared.engine_keys import engine_key
from cortex_shared.errors import InvalidInput
from cortex_shared.logs import get_logger
from cortex_shared.tls import client_context

from cortex_gateway.balance import Health

if TYPE_CHECKING:
    from cortex_gateway.upstream import Connection

_log = get_logger("endpoint")

_TLS_PORT: Final = 443
_PLAIN_PORT: Final = 80


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

    def take(self, seen: "Evidence") -> None:
        """Add what was seen later."""
        self.successes += seen.successes
        self.failures += seen.failures
        self.connect_failures += seen.connect_failures
        self.first_token_sum += seen.first_token_sum
        self.first_token_count += seen.first_token_count


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
        "told",
        "url",
    )

    def __init__(self, contract: EndpointContract, fleet_secret: str) -> None:
        """Raises ValueError when the URL is none, or its certificates are none."""
        super().__init__(contract.weight, f"{contract.instance} {contract.url} {contract.model}")
        parts = urlsplit(contract.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http address: {contract.url!r}")
        self.url = contract.url
        self.instance = contract.instance
        self.model = contract.model
        self.host = parts.hostname
        https = parts.scheme == "https"
        self.tls = client_context(verify=contract.tls_verify, ca=contract.ca) if https else None
        self.port = parts.port or (_TLS_PORT if self.tls else _PLAIN_PORT)
        self._host_header = parts.netloc.rpartition("@")[2].encode()
        # People write an OpenAI base URL with or without its /v1.
        self._prefix = parts.path.rstrip("/").removesuffix("/v1").encode()
        self._key = _key(contract, fleet_secret)
        self._heads: dict[bytes, bytes] = {}
        self.idle: list[Connection] = []
        # What happened since it was last told, and all that was told before.
        self.evidence = Evidence()
        self.told = Evidence()
        self.removed = False

    def head(self, path: bytes) -> bytes:
        """The fixed part of a POST's head, with the engine's own key."""
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self.head_of(b"POST", path)
        return head

    def head_of(self, method: bytes, target: bytes) -> bytes:
        """The same for any method and target, which are too many to be kept."""
        key = b"authorization: Bearer %b\r\n" % self._key.encode() if self._key else b""
        return b"%b %b%b HTTP/1.1\r\nhost: %b\r\n%b" % (method, self._prefix, target, self._host_header, key)

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
        """The evidence since this was last called."""
        seen, self.evidence = self.evidence, Evidence()
        self.told.take(seen)
        mean = seen.first_token_sum / seen.first_token_count if seen.first_token_count else None
        return EndpointEvidence(
            instance=self.instance,
            successes=seen.successes,
            failures=seen.failures,
            connect_failures=seen.connect_failures,
            in_flight=self.outstanding,
            first_token_seconds=mean,
        )


def _key(contract: EndpointContract, fleet_secret: str) -> str:
    """What to present; empty: nothing."""
    if contract.key:
        return contract.key
    if contract.sealed_key is not None:
        try:
            return unseal(
                fleet_secret,
                contract.sealed_key,
                url=contract.url,
                tls_verify=contract.tls_verify,
                ca=contract.ca,
            )
        except InvalidInput as error:
            _log.error("endpoint.key_unreadable", instance=contract.instance, error=error.message)
            return ""
    return engine_key(fleet_secret, contract.instance) if fleet_secret and not contract.external else ""
