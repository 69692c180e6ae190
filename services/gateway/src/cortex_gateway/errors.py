"""ApiError: every refusal as OpenAI's clients expect it, and engines' own errors brought into that shape."""

from dataclasses import dataclass
from typing import Any, cast, final

import msgspec

from cortex_gateway.completions import UNREADABLE

# Clients sleep for as long as told; above 60 s they ignore the header.
RETRY_AFTER_MAX_SECONDS = 60


@final
@dataclass(frozen=True, slots=True)
class ApiError:
    """One answer of the form `{"error": {"message", "type", "param", "code"}}`."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    retry_after_seconds: int | None = None
    should_retry: bool | None = None
    allow: str | None = None
    # Whether `code` and `type` are of this module: an engine's may be anything, without end.
    own: bool = True

    @property
    def reason(self) -> str:
        """What went wrong in one of few words, for metrics: the code, the type, or an engine's status."""
        return (self.code or self.type) if self.own else str(self.status)

    def body(self) -> bytes:
        """The JSON document."""
        return msgspec.json.encode(
            {
                "error": {
                    "message": self.message,
                    "type": self.type,
                    "param": self.param,
                    "code": self.code,
                }
            }
        )

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers that belong to it, besides content type and length."""
        found: list[tuple[bytes, bytes]] = []
        if self.retry_after_seconds is not None:
            seconds = max(1, min(RETRY_AFTER_MAX_SECONDS, self.retry_after_seconds))
            found.append((b"retry-after", b"%d" % seconds))
        if self.should_retry is not None:
            found.append((b"x-should-retry", b"true" if self.should_retry else b"false"))
        if self.allow is not None:
            found.append((b"allow", self.allow.encode()))
        return found

    def event(self) -> bytes:
        """The error as an event of a stream that has begun; both SDKs raise on it."""
        return b"data: " + self.body() + b"\n\n"


def invalid_request(message: str, *, param: str | None = None, status: int = 400) -> ApiError:
    """The request cannot be understood."""
    return ApiError(status, message, "invalid_request_error", param=param)


def no_key() -> ApiError:
    """No key was presented."""
    return ApiError(
        401,
        "No API key was given. Send it as `Authorization: Bearer <key>`.",
        "invalid_request_error",
        "invalid_api_key",
    )


def unknown_key() -> ApiError:
    """The key is not known, was revoked, or expired."""
    return ApiError(
        401,
        "The API key is not valid: unknown, revoked or expired.",
        "invalid_request_error",
        "invalid_api_key",
    )


def keys_not_loaded() -> ApiError:
    """No keyring was ever received: no key can be told from another yet."""
    return ApiError(
        503,
        "The gateway has not received its API keys yet. Try again in a moment.",
        "server_error",
        "gateway_starting",
        retry_after_seconds=1,
    )


def forbidden_address() -> ApiError:
    """The key may not be used from the client's address."""
    return ApiError(
        403, "This API key may not be used from your address.", "permission_error", "address_denied"
    )


def forbidden_model(model: str) -> ApiError:
    """The key is not allowed to use the model."""
    return ApiError(
        403,
        f"This API key may not use the model {model!r}.",
        "permission_error",
        "model_not_allowed",
        "model",
    )


def unknown_model(model: str) -> ApiError:
    """No route has this name or alias."""
    return ApiError(
        404,
        f"The model {model!r} does not exist. GET /v1/models lists those that do.",
        "invalid_request_error",
        "model_not_found",
        "model",
    )


def model_not_ready(model: str, state: str) -> ApiError:
    """The model is known and has no engine that is ready."""
    return ApiError(
        503,
        f"The model {model!r} is not ready: it is {state}. Try again shortly.",
        "server_error",
        "model_not_ready",
        retry_after_seconds=10 if state in ("starting", "loading", "failed", "stopped") else 2,
    )


def queue_full(model: str) -> ApiError:
    """All slots of the route are taken and so are the places to wait."""
    return ApiError(
        503,
        f"All engines of {model!r} are busy and its queue is full. Try again shortly.",
        "server_error",
        "server_is_overloaded",
        retry_after_seconds=2,
    )


def queue_timeout(model: str) -> ApiError:
    """A place to wait was found, a slot was not."""
    return ApiError(
        503,
        f"All engines of {model!r} stayed busy for too long.",
        "server_error",
        "server_is_overloaded",
        retry_after_seconds=5,
    )


def engine_unreachable(model: str) -> ApiError:
    """No engine answered, or one broke before its answer began."""
    return ApiError(
        502,
        f"The engine of {model!r} could not be reached or broke off.",
        "server_error",
        "engine_unreachable",
        retry_after_seconds=2,
    )


def engine_timeout(model: str, what: str) -> ApiError:
    """A time limit of the route ran out; `what` names it."""
    return ApiError(
        504, f"The engine of {model!r} took too long {what}.", "timeout", "engine_timeout", should_retry=False
    )


def stream_broke(model: str) -> ApiError:
    """An answer that had begun could not be finished."""
    return ApiError(502, f"The engine of {model!r} broke off in mid-stream.", "server_error", "stream_broken")


def draining() -> ApiError:
    """The gateway stops, and the answer took longer than it waits."""
    return ApiError(
        503, "The gateway is being restarted. Send the request again.", "server_error", "gateway_stopping"
    )


def internal_error() -> ApiError:
    """A bug of the gateway's own."""
    return ApiError(500, "The gateway failed.", "server_error", "internal_error")


def unknown_url(path: str) -> ApiError:
    """No such path."""
    return ApiError(
        404, f"Unknown path {path}. The API lies under /v1.", "invalid_request_error", "unknown_url"
    )


def wrong_method(method: str, allow: str) -> ApiError:
    """The path exists, the method does not."""
    return ApiError(
        405,
        f"{method} is not possible here, {allow} is.",
        "invalid_request_error",
        "method_not_allowed",
        allow=allow,
    )


def unknown_response(response: str) -> ApiError:
    """No engine is known to keep this response, or none for this key."""
    return ApiError(
        404,
        f"The response {response!r} is not known: it was not created here with this key, was not stored, or "
        "its engine is gone.",
        "invalid_request_error",
        "response_not_found",
        "response_id",
    )


def not_offered(model: str, path: str) -> ApiError:
    """The path is one that some engines have; this model's has not."""
    return ApiError(
        400,
        f"The engine of {model!r} does not offer {path}.",
        "invalid_request_error",
        "endpoint_not_supported",
        "model",
    )


# What engines say of paths that they do not have.
NO_SUCH_PATH = ("Not Found", "Method Not Allowed", "File Not Found")

_TYPES = {400: "invalid_request_error", 404: "invalid_request_error", 413: "invalid_request_error"}
_CODES = {429: "rate_limit_exceeded", 503: "server_is_overloaded"}
_OWN_CODES = (*_CODES.values(), "context_length_exceeded")
_CONTEXT_WORDS = ("maximum context length", "maximum model length", "exceeds the available context size")


def from_engine(status: int, body: bytes) -> ApiError:
    """An engine's error in OpenAI's shape, whatever shape it had.

    vLLM and llama.cpp send integer codes, older vLLM no `error` object, proxies plain text. An engine that
    refuses the gateway's own key (401, 403) is a fault of the fleet, never of the client: 502.
    """
    if status in (401, 403):
        return ApiError(
            502, "The engine refused the gateway's key.", "server_error", "engine_refused", should_retry=False
        )
    fields = _fields(body)
    message = fields.get("message")
    if not isinstance(message, str) or not message:
        message = _text(body) or f"The engine answered with status {status}."
    if status == 501:
        # Not possible with this model: nothing that another attempt could mend.
        return ApiError(400, message, "invalid_request_error", "not_supported")
    if status == 500 and _is_the_clients(message):
        status = 400
    kind = fields.get("type")
    # "error" says nothing: it is what an event of the Responses API is called.
    if (
        not isinstance(kind, str)
        or kind in ("", "error")
        or kind != kind.lower()
        or (status < 500 and "server" in kind)
    ):
        kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        kind = "rate_limit_error" if status == 429 else kind
    code = fields.get("code")
    if not isinstance(code, str) or code.isdigit():
        code = _CODES.get(status)
    if kind == "exceed_context_size_error" or any(words in message for words in _CONTEXT_WORDS):
        kind, code = "invalid_request_error", "context_length_exceeded"
    param = fields.get("param")
    return ApiError(
        status,
        message,
        kind,
        code,
        param if isinstance(param, str) else None,
        retry_after_seconds=2 if status in (429, 503) else None,
        own=code in _OWN_CODES,
    )


def _is_the_clients(message: str) -> bool:
    # llama.cpp's server calls some errors of clients its own.
    return message.startswith("Failed to parse ") or message.endswith("' is required")


def _fields(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except UNREADABLE:
        return {}
    if not isinstance(found, dict):
        return {}
    document = cast("dict[str, Any]", found)
    error = document.get("error")
    if isinstance(error, dict):
        return cast("dict[str, Any]", error)
    if isinstance(error, str):
        return {"message": error}
    if "message" in document:
        return document
    detail = document.get("detail")
    return {} if detail is None else {"message": detail if isinstance(detail, str) else repr(detail)}


def _text(body: bytes) -> str:
    text = body[:2000].decode("utf-8", "replace").strip()
    return "" if text.startswith(("{", "[", "<")) else text
