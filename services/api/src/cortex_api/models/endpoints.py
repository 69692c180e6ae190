"""Endpoints of models that others serve: their keys in the row, and how the monitor finds them."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, cast
from urllib.parse import urlsplit

from cortex_shared.contracts.external import EndpointObserved

from cortex_api.db.tables import Model
from cortex_api.engines.base import EngineSettings, ModelSpec
from cortex_api.engines.external import ExternalSettings, endpoint_id
from cortex_api.observations import Observations
from cortex_api.secrets import SecretBox

_STATES = ("starting", "loading", "running", "failed")


def keys_to_store(box: SecretBox, stored: Mapping[str, str], settings: EngineSettings) -> dict[str, str]:
    """Encrypted keys by address: those given now, and those stored for addresses that stay.

    An address that is new has no key but its own, so that nobody learns a key by naming another server.
    """
    if not isinstance(settings, ExternalSettings):
        return {}
    keys: dict[str, str] = {}
    for server in settings.endpoints:
        if server.api_key is not None:
            keys[server.url] = box.encrypt(server.api_key.get_secret_value()).decode()
        elif "api_key" not in server.model_fields_set and server.url in stored:
            keys[server.url] = stored[server.url]
    return keys


def observed_of(row: Model, observations: Observations) -> list[EndpointObserved]:
    """How each of a model's servers is, in their order; `starting` where the monitor has not looked yet."""
    assert row.id is not None
    told = observations.external(row.id) if row.desired_state == "running" else None
    found = {endpoint.id: endpoint for endpoint in told.endpoints} if told is not None else {}
    servers = cast("list[dict[str, Any]]", row.settings.get("endpoints") or [])
    return [
        found.get(ident) or EndpointObserved(id=ident, url=url, state="starting", since=row.updated_at)
        for url in (str(server.get("url")) for server in servers)
        for ident in [endpoint_id(row.id, url)]
    ]


def shown(
    row: Model, servers: list[dict[str, Any]], observed: list[EndpointObserved]
) -> list[dict[str, Any]]:
    """The servers as they are answered: without keys, and with what was observed of each."""
    return [
        {
            **server,
            "api_key_set": server["url"] in row.endpoint_keys,
            "state": seen.state if seen.state in _STATES else "starting",
            **seen.model_dump(mode="json", include={"reason", "latency_seconds", "checked_at"}),
        }
        for server, seen in zip(servers, observed, strict=True)
    ]


def warnings(spec: ModelSpec) -> list[str]:
    """What is doubtful of a model's servers, though it is allowed."""
    if not isinstance(spec.settings, ExternalSettings):
        return []
    told: list[str] = []
    for number, server in enumerate(spec.settings.endpoints):
        if server.api_key is not None and server.url.startswith("http:") and not _is_here(server.url):
            told.append(
                f"endpoints.{number}: the key travels unencrypted to {server.url}; use https where you can"
            )
        if not server.tls_verify:
            told.append(f"endpoints.{number}: tls_verify is false: anybody may pose as {server.url}")
    return told


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
