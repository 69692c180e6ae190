"""Every error as `{"error": {code, message, field, remedy}}`: those of ours, of the framework, of bodies."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, cast

from cortex_shared.errors import CortexError, InvalidInput, Unauthorized
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match

UNKNOWN_FIELD = "unknown_field"


class TooLarge(InvalidInput):
    """The body is larger than any sensible one."""

    status = 413


class ErrorDetail(BaseModel):
    """What went wrong, and what to do about it."""

    code: str = Field(description="Stable, for programs.", examples=["models.name_taken"])
    message: str = Field(description="For people.", examples=["there is a model named tiny already"])
    field: str | None = Field(description="The input at fault, as a dotted path.", examples=["name"])
    remedy: str | None = Field(description="What to do.", examples=["choose another name"])


class ErrorBody(BaseModel):
    """The one shape of all errors."""

    error: ErrorDetail


_SAID = {
    400: "The request is not valid: `field` names what is wrong with it.",
    401: "No key, or one that is unknown, revoked or expired.",
    403: "The key's role does not allow this.",
    404: "What the path names does not exist.",
    409: "The request does not fit the present state.",
    413: "The body is larger than 1 MiB.",
    500: "A fault of Cortex; its log has the request id.",
    503: "A part of Cortex is away; try again.",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: these errors beside those that every route may give."""
    every = {400, 401, 403, 500, 503, *statuses}
    return {status: {"model": ErrorBody, "description": _SAID[status]} for status in sorted(every)}


def error_response(error: CortexError) -> Response:
    """An error as JSON."""
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else None
    if error.status == 503:
        headers = {"Retry-After": "1"}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that was probably meant."""
    found = get_close_matches(name, known, n=1, cutoff=0.6)
    return found[0] if found else None


def unknown_field(name: str, known: Sequence[str]) -> InvalidInput:
    """An error for a field that does not exist."""
    close = nearest(name.rpartition(".")[2], known)
    return InvalidInput(
        f"there is no field {name!r}" + (f"; did you mean {close!r}?" if close else ""),
        code="body.unknown_field",
        field=name,
        remedy=f"use {close!r}" if close else f"the fields are: {', '.join(sorted(known))}",
    )


def invalid(errors: Sequence[Any], *, skip: tuple[str, ...] = ("body",)) -> InvalidInput:
    """pydantic's first error in our words; `skip` are leading parts of its location to leave out."""
    first = errors[0]
    parts: list[str] = [str(part) for part in first["loc"]]
    if parts and parts[0] in skip:
        parts = parts[1:]
    kind: str = first["type"]
    context: dict[str, Any] = first.get("ctx") or {}
    if kind == UNKNOWN_FIELD:
        return unknown_field(".".join([*parts, context["name"]]), context["known"].split(","))
    field = ".".join(parts) or None
    if kind == "json_invalid":
        return InvalidInput(
            f"the body is not JSON: {context.get('error', first['msg'])}",
            code="body.not_json",
            remedy="send a JSON object",
        )
    if kind == "missing":
        what = field or "a body"
        return InvalidInput(f"{what} is missing", code="body.missing", field=field, remedy=f"give {what}")
    if kind in ("model_attributes_type", "dict_type", "model_type") and field is None:
        return InvalidInput(
            "the body is not a JSON object", code="body.not_object", remedy='send an object: {"field": ...}'
        )
    said = str(first["msg"]).removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    return InvalidInput(
        f"{field}: {said}" if field else said,
        code="body.invalid",
        field=field,
        remedy="see the API's description of this field at /api/v1/openapi.json",
    )


async def _on_cortex_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, CortexError)
    return error_response(error)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid(error.errors(), skip=("body", "query", "path", "header")))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        told = CortexError(
            f"there is nothing at {request.url.path}",
            code="http.not_found",
            remedy="see /api/v1/openapi.json for what there is",
        )
    elif error.status_code == 405:
        allowed = ", ".join(_methods(request))
        told = CortexError(
            f"{request.method} is not possible at {request.url.path}",
            code="http.method_not_allowed",
            remedy=f"use {allowed}" if allowed else None,
        )
        return JSONResponse(told.body(), status_code=405, headers={"Allow": allowed})
    else:
        told = CortexError(str(error.detail), code=f"http.{error.status_code}")
    return JSONResponse(told.body(), status_code=error.status_code)


def _methods(request: Request) -> list[str]:
    """Methods that the path has; the router itself names those of the first route only."""
    found: set[str] = set()
    for route in cast("list[BaseRoute]", request.app.routes):
        for method in ("GET", "POST", "PATCH", "DELETE"):
            if route.matches({**request.scope, "method": method})[0] is Match.FULL:
                found.add(method)
    return sorted(found)


def install_error_handlers(app: FastAPI) -> None:
    """Give the application our handlers. Exceptions that are none of these are the edge's to catch."""
    app.add_exception_handler(CortexError, _on_cortex_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
