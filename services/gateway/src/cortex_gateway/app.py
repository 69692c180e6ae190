"""The paths that are not hot: models, health, metrics, and errors for everything else, by FastAPI."""

import secrets
import time
from typing import Any

from cortex_shared.health import Readiness, health_routes
from cortex_shared.metrics import Metrics
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cortex_gateway import errors
from cortex_gateway.errors import ApiError
from cortex_gateway.gateway import Gateway
from cortex_gateway.keys import Key
from cortex_gateway.paths import HOT_PATHS
from cortex_gateway.table import Route
from cortex_gateway.wire import shown_id

OWNER = "cortex"


def build_app(gateway: Gateway, metrics: Metrics, readiness: Readiness) -> ASGIApp:
    """The ASGI application of one gateway process."""
    app = FastAPI(title="Cortex gateway", openapi_url=None, docs_url=None, redoc_url=None)
    app.router.routes.extend(health_routes(readiness, metrics))
    app.router.redirect_slashes = False

    async def list_models(request: Request) -> Response:
        key = _authenticate(gateway, request)
        if isinstance(key, ApiError):
            return _response(key)
        found = [_model(route) for route in gateway.table.routes() if key.allows(route.name)]
        return _json({"object": "list", "data": found})

    async def one_model(request: Request) -> Response:
        key = _authenticate(gateway, request)
        if isinstance(key, ApiError):
            return _response(key)
        name: str = request.path_params["model"]
        route = gateway.table.find(name)
        if route is None or not (key.allows(route.name) or key.allows(name)):
            return _response(errors.unknown_model(name))
        return _json(_model(route, name))

    app.router.add_route("/v1/models", list_models, methods=["GET"])
    app.router.add_route("/v1/models/{model:path}", one_model, methods=["GET"])

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, method = request.url.path, request.method
        if error.status_code == 405:
            allow = ", ".join(sorted((error.headers or {}).get("Allow", "GET").split(", ")))
            return _response(errors.wrong_method(method, allow))
        if path.encode() in HOT_PATHS:
            return _response(errors.wrong_method(method, "POST"))
        return _response(errors.unknown_url(path))

    async def fail(_: Request, __: Exception) -> Response:
        return _response(errors.internal_error())

    app.add_exception_handler(HTTPException, refuse)
    app.add_exception_handler(Exception, fail)
    return _RequestIds(app)


class _RequestIds:
    # x-request-id on every answer, as the hot paths have it.
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        shown = shown_id(scope["headers"], f"req_{secrets.token_hex(12)}".encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", shown)]
            await send(message)

        await self._app(scope, receive, send_with_id)


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


def _json(document: dict[str, Any]) -> Response:
    return JSONResponse(document)


def _response(error: ApiError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, headers, media_type="application/json")
