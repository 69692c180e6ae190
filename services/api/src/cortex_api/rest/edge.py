"""Edge: the outermost ASGI layer. Request ids, bounded bodies, faults without internals, metrics."""

import re
from time import perf_counter
from urllib.parse import unquote_to_bytes

import anyio
import structlog
from cortex_shared.errors import CortexError, InvalidInput
from cortex_shared.ids import new_request_id
from cortex_shared.logs import get_logger
from cortex_shared.metrics import Metrics
from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cortex_api.rest.errors import TooLarge, error_response

_log = get_logger("rest")

BODY_BYTES_MAX = 2**20
_BODY_SECONDS = 30
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Edge:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._requests = metrics.counter("requests", "Requests answered.", ("method", "route", "status"))
        self._seconds = metrics.histogram(
            "request_seconds", "Time until a response began.", _SECONDS, ("method", "route")
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        began = perf_counter()
        status: int | None = None

        async def respond(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                headers = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
                self._count(scope, message["status"], perf_counter() - began)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                _refuse_nul(scope)
                await self._app(scope, await _bounded(scope, receive), respond)
            except CortexError as error:
                await error_response(error)(scope, receive, respond)
            except Exception:
                _log.exception("request.failed", method=scope["method"], path=scope["path"])
                if status is not None:
                    raise
                fault = CortexError(
                    "Cortex made a mistake; this is not your request's fault",
                    code="internal",
                    remedy=f"look for request {request_id} in the log of the API",
                )
                await error_response(fault)(scope, receive, respond)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")
        self._requests.labels(scope["method"], route, str(status)).inc()
        self._seconds.labels(scope["method"], route).observe(seconds)


def _check_json(body: bytes) -> None:
    # One parser for all routes: it refuses NaN, bad UTF-8 and bottomless nesting, which json.loads does not.
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidInput(
            f"the body is not JSON: {error}", code="body.not_json", remedy="send a JSON object"
        ) from error


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value.decode("latin-1")):
            return value.decode("latin-1")
    return new_request_id()


def _refuse_nul(scope: Scope) -> None:
    # Postgres has no NUL in texts: say so here, once, for paths and queries.
    if "\0" in scope["path"] or b"\0" in unquote_to_bytes(scope["query_string"]):
        raise InvalidInput("NUL in the address", code="http.nul", remedy="leave the NUL character out")


async def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Read the body of a request that may have one, and give a `receive` that says it again."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return receive
    body = bytearray()
    try:
        with anyio.fail_after(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    break
                body += message.get("body", b"")
                if len(body) > BODY_BYTES_MAX:
                    raise TooLarge(
                        "the body is larger than 1 MiB",
                        code="body.too_large",
                        remedy="send less; model files are named by path, not sent",
                    )
                if not message.get("more_body", False):
                    break
    except TimeoutError as error:
        raise InvalidInput(
            "the body did not arrive in time", code="body.slow", remedy="send the whole body at once"
        ) from error
    if b"\\u0000" in body or b"\0" in body:
        raise InvalidInput("NUL in the body", code="body.nul", remedy="leave the NUL character out")
    if body:
        _check_json(bytes(body))
    # Every body is JSON, whatever a client (curl -d) labels it.
    scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
    scope["headers"].append((b"content-type", b"application/json"))
    said = False

    async def again() -> Message:
        nonlocal said
        if said:
            return await receive()
        said = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return again
