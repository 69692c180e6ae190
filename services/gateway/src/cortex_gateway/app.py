"""The paths that are not hot: models, health, metrics, and errors for everything else, by FastAPI."""

import secrets
import time
from datetime import UTC, datetime
from typing import Any

from cortex_shared.health import Page, Readiness, health_routes
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cortex_gateway import errors
from cortex_gateway.errors import ApiError
from cortex_gateway.gateway import Gateway
from cortex_gateway.keys import Key
from cortex_gateway.paths import HOT_PATHS, methods_of
from cortex_gateway.shapes import ANTHROPIC, OPENAI, Shape
from cortex_gateway.table import Route
from cortex_gateway.wire import find, shown_id

OWNER = "cortex"


def build_app(gateway: Gateway, metrics: Page, readiness: Readiness) -> ASGIApp:
    """The ASGI application of one gateway process; `metrics` is shown at /metrics."""
    app = FastAPI(title="Cortex gateway", openapi_url=None, docs_url=None, redoc_url=None)
    app.router.routes.extend(health_routes(readiness, metrics))
    app.router.redirect_slashes = False

    async def list_models(request: Request) -> Response:
        key = _authenticate(gateway, request)
        if isinstance(key, ApiError):
            return _response(gateway, request, key)
        found = [_model(route) for route in gateway.table.routes() if key.allows(route.name)]
        listed: dict[str, Any] = {"object": "list", "data": found}
        if _speaks_anthropic(request):
            found[:] = [_for_anthropic(model) for model in found]
            ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {}
            listed |= {"has_more": False, "first_id": None, "last_id": None, **ends}
        return _json(listed)

    async def one_model(request: Request) -> Response:
        key = _authenticate(gateway, request)
        if isinstance(key, ApiError):
            return _response(gateway, request, key)
        name: str = request.path_params["model"]
        route = gateway.table.find(name)
        if route is None or not (key.allows(route.name) or key.allows(name)):
            return _response(gateway, request, errors.unknown_model(name))
        model = _model(route, name)
        return _json(_for_anthropic(model) if _speaks_anthropic(request) else model)

    app.router.add_route("/v1/models", list_models, methods=["GET"])
    app.router.add_route("/v1/models/{model:path}", one_model, methods=["GET"])

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, method = request.url.path, request.method
        methods = methods_of(path.encode())
        if methods is None and error.status_code == 405:
            methods = (error.headers or {}).get("Allow", "GET").split(", ")
        if methods is None:
            return _response(gateway, request, errors.unknown_url(path))
        allow = ", ".join(sorted(methods))
        if method == "OPTIONS":
            return _options(gateway, request, f"{allow}, OPTIONS")
        return _response(gateway, request, errors.wrong_method(method, allow))

    async def fail(request: Request, _: Exception) -> Response:
        return _response(gateway, request, errors.internal_error())

    app.add_exception_handler(HTTPException, refuse)
    app.add_exception_handler(Exception, fail)
    return _Headers(app, gateway)


class _Headers:
    # What every answer has, as those of the hot paths: x-request-id, and CORS where it is on.
    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        shown = shown_id(scope["headers"], f"req_{secrets.token_hex(12)}".encode())

        scope.setdefault("state", {})["shown"] = shown
        more = [(b"x-request-id", shown)]
        if self._gateway.cors is not None:
            more += self._gateway.cors.headers(scope["headers"])

        async def send_with_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        await self._app(scope, receive, send_with_more)


def _authenticate(gateway: Gateway, request: Request) -> Key | ApiError:
    address = request.client.host if request.client is not None else None
    return gateway.keys.find(request.scope["headers"], address, time.time())


def _model(route: Route, name: str | None = None) -> dict[str, Any]:
    contract = route.contract
    found: dict[str, Any] = {
        "id": name or contract.name,
        "object": "model",
        "created": contract.created,
        "owned_by": OWNER,
        "state": contract.state if contract.endpoints or contract.state != "running" else "starting",
        "task": contract.task,
        "aliases": contract.aliases,
    }
    if contract.context_length is not None:
        found["max_model_len"] = contract.context_length
    return found


def _speaks_anthropic(request: Request) -> bool:
    # Its clients always say which version they speak.
    return find(request.scope["headers"], b"anthropic-version") is not None


def _for_anthropic(model: dict[str, Any]) -> dict[str, Any]:
    created = datetime.fromtimestamp(model["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**model, "type": "model", "display_name": model["id"], "created_at": created}


def _json(document: dict[str, Any]) -> Response:
    return JSONResponse(document)


def _shape(request: Request) -> Shape:
    hot = HOT_PATHS.get(request.url.path.encode())
    if hot is not None:
        return hot.shape
    return ANTHROPIC if _speaks_anthropic(request) else OPENAI


def _response(gateway: Gateway, request: Request, error: ApiError) -> Response:
    gateway.stats.refuse(error.status, error.reason)
    shape, shown = _shape(request), request.state.shown
    headers = {name.decode(): value.decode() for name, value in shape.headers(error, shown)}
    return Response(shape.body(error, shown), shape.status(error), headers, media_type="application/json")


def _options(gateway: Gateway, request: Request, allow: str) -> Response:
    answer = Response(status_code=204, headers={"allow": allow})
    if gateway.cors is not None:
        answer.raw_headers.extend(gateway.cors.preflight(request.scope["headers"], allow.encode()))
    return answer
