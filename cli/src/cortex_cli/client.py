"""A typed client of Cortex's REST API; every failure comes out as a CortexError with a remedy."""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

import httpx
from cortex_shared.errors import (
    Conflict,
    CortexError,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthorized,
    Unavailable,
)

from cortex_cli.shapes import Event, Instance, Json, Key, Model, Node

PREFIX = "/api/v1"
_PAGE_ITEMS_MAX = 200
_PAGES_MAX = 1000
_KINDS: dict[int, type[CortexError]] = {
    400: InvalidInput,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: InvalidInput,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


class Api:
    """The REST API at `url`. Use it as a context manager, or close it."""

    def __init__(self, url: str, token: str | None, *, seconds: float = 60.0) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(seconds, connect=5)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # Models.

    def models(self, **filters: str | None) -> list[Model]:
        """All models, or those that fit the filters (`state`, `engine_type`, ...)."""
        return cast("list[Model]", self._items("/models", filters))

    def model(self, model: str) -> Model:
        """One model by name or id. Raises NotFound."""
        return cast("Model", self.call("GET", f"/models/{_part(model)}"))

    def create_model(self, body: Json) -> Model:
        """A new model, stopped. Raises InvalidInput or Conflict."""
        return cast("Model", self.call("POST", "/models", body=body))

    def patch_model(self, model: str, body: Json) -> Model:
        """Change some fields; replicas that run are replaced when they must be."""
        return cast("Model", self.call("PATCH", f"/models/{_part(model)}", body=body))

    def delete_model(self, model: str, *, stop: bool) -> None:
        """Remove it; with `stop` also when it runs (it is stopped first)."""
        self.call("DELETE", f"/models/{_part(model)}", query={"stop": "true"} if stop else None)

    def start_model(self, model: str) -> Model:
        """Want it to run."""
        return cast("Model", self.call("POST", f"/models/{_part(model)}/start"))

    def stop_model(self, model: str) -> Model:
        """Want it not to run."""
        return cast("Model", self.call("POST", f"/models/{_part(model)}/stop"))

    def dry_run(self, model: str | None, body: Json | None) -> Json:
        """The exact plan and where it would run; of an existing model, or of a body that is not created."""
        path = f"/models/{_part(model)}/dry-run" if model else "/models/dry-run"
        return self.call("POST", path, body=body)

    def model_instances(self, model: str) -> list[Instance]:
        """Replicas of one model."""
        return cast("list[Instance]", self._items(f"/models/{_part(model)}/instances"))

    @contextmanager
    def model_logs(self, model: str, *, tail: int, follow: bool) -> Generator[Iterator[str]]:
        """Log lines of its engines, the last `tail` first; with `follow` until you leave."""
        query = {"tail": str(tail), "follow": "true" if follow else "false"}
        with self._stream(f"/models/{_part(model)}/logs", query) as response:
            yield response.iter_lines()

    # The rest.

    def instances(self) -> list[Instance]:
        """All replicas of all models."""
        return cast("list[Instance]", self._items("/instances"))

    def instance(self, instance: str) -> Instance:
        """One replica. Raises NotFound."""
        return cast("Instance", self.call("GET", f"/instances/{_part(instance)}"))

    def end_instance(self, instance: str) -> None:
        """Stop an engine that no model has. Raises NotFound, or Conflict when a model has it."""
        self.call("DELETE", f"/instances/{_part(instance)}")

    def nodes(self) -> list[Node]:
        """All hosts."""
        return cast("list[Node]", self._items("/nodes"))

    def node(self, node: str) -> Node:
        """One host. Raises NotFound."""
        return cast("Node", self.call("GET", f"/nodes/{_part(node)}"))

    def add_node(self, name: str) -> str:
        """Invite a host; the text of its credentials file."""
        return str(self.call("POST", "/nodes", body={"name": name})["credentials"])

    def cordon(self, node: str, *, cordoned: bool) -> Node:
        """Whether new replicas may be placed there."""
        return cast("Node", self.call("POST", f"/nodes/{_part(node)}/{'' if cordoned else 'un'}cordon"))

    def keys(self) -> list[Key]:
        """All API keys, without the keys themselves."""
        return cast("list[Key]", self._items("/keys"))

    def create_key(self, body: Json) -> Key:
        """A new key: the answer holds it, and nothing else ever will."""
        return cast("Key", self.call("POST", "/keys", body=body))

    def patch_key(self, key: str, body: Json) -> Key:
        """Change some fields. Raises NotFound, InvalidInput or Conflict."""
        return cast("Key", self.call("PATCH", f"/keys/{_part(key)}", body=body))

    def revoke_key(self, key: str) -> None:
        """Refused everywhere within a second. Raises NotFound."""
        self.call("DELETE", f"/keys/{_part(key)}")

    def events(self, limit: int) -> list[Event]:
        """What happened last, oldest first."""
        found = self.call("GET", "/events", query={"format": "json", "limit": str(limit)})
        return cast("list[Event]", found.get("items", []))

    def audit(self, limit: int, **filters: str | None) -> list[Json]:
        """Who changed what, the newest first; filters are `actor`, `action` and `target`."""
        found = self.call("GET", "/audit", query={**filters, "limit": str(limit)})
        return cast("list[Json]", found.get("items", []))

    @contextmanager
    def follow_events(self) -> Generator[Iterator[Event]]:
        """What happens from now on, until you leave."""
        with self._stream("/events", {}, accept="text/event-stream") as response:
            yield _events(response.iter_lines())

    def get(self, path: str, query: Mapping[str, str | None] | None = None) -> Json:
        """`/status`, `/usage`, `/engines`, `/whoami`."""
        return self.call("GET", path, query=query)

    # HTTP.

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Json | None = None,
        query: Mapping[str, str | None] | None = None,
    ) -> Json:
        """One request; the JSON object of the answer, empty if it has none. Raises CortexError."""
        params = {name: text for name, text in (query or {}).items() if text is not None}
        with _translated(self.url):
            response = self._http.request(method, PREFIX + path, json=body, params=params)
        _raise_for(response)
        if not response.content:
            return {}
        try:
            found: object = response.json()
        except json.JSONDecodeError as error:
            raise CortexError(
                f"{self.url} answers something that is not JSON.",
                code="client.not_json",
                remedy="Check that the address is that of Cortex's API.",
            ) from error
        return cast("Json", found) if isinstance(found, dict) else {"items": found}

    def _items(self, path: str, filters: Mapping[str, str | None] | None = None) -> list[Json]:
        items: list[Json] = []
        cursor: str | None = None
        for _ in range(_PAGES_MAX):
            page = {"limit": str(_PAGE_ITEMS_MAX), "cursor": cursor}
            found = self.call("GET", path, query={**(filters or {}), **page})
            items += cast("list[Json]", found.get("items", []))
            cursor = cast("str | None", found.get("next_cursor"))
            if not cursor:
                break
        return items

    @contextmanager
    def _stream(
        self, path: str, query: Mapping[str, str], *, accept: str = "text/plain"
    ) -> Generator[httpx.Response]:
        timeout = httpx.Timeout(5, read=None)
        with (
            _translated(self.url),
            self._http.stream(
                "GET", PREFIX + path, params=query, headers={"Accept": accept}, timeout=timeout
            ) as response,
        ):
            if response.is_error:
                response.read()
                _raise_for(response)
            yield response


@contextmanager
def _translated(url: str) -> Generator[None]:
    """What httpx raises, in words."""
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidInput(
            f"{url!r} is no address of an API.", code="client.bad_url", remedy="Use http://HOST:PORT."
        ) from error
    except httpx.TimeoutException as error:
        raise Unavailable(
            f"{url} did not answer in time.",
            code="client.timeout",
            remedy="See `cortex doctor` and the api's log.",
        ) from error
    except httpx.ConnectError as error:
        raise Unavailable(
            f"Nothing answers at {url}.",
            code="client.unreachable",
            remedy="Start Cortex with `cortex up`, or give its address with --api-url or CORTEX_API_URL.",
        ) from error
    except httpx.TransportError as error:
        raise Unavailable(
            f"The connection to {url} broke: {error or type(error).__name__}.",
            code="client.broken",
            remedy="Try again; see the api's log if it stays so.",
        ) from error


def _raise_for(response: httpx.Response) -> None:
    if not response.is_error:
        return
    kind = _KINDS.get(response.status_code, CortexError)
    try:
        found: Any = response.json()
        error = cast("Json", found["error"])
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        raise kind(
            f"{response.request.url.path} answers {response.status_code}: {response.text[:200].strip()}",
            code="client.unexpected_answer",
            remedy="Check that the address is that of Cortex's API; see the api's log.",
        ) from None
    raise kind(message, code=str(error.get("code")), field=error.get("field"), remedy=error.get("remedy"))


def _events(lines: Iterator[str]) -> Iterator[Event]:
    """The JSON of `data:` lines of a server-sent stream; comments (keep-alives) are passed over."""
    for line in lines:
        if line.startswith("data:"):
            yield cast("Event", json.loads(line.removeprefix("data:")))


def _part(name: str) -> str:
    return quote(name, safe="")
