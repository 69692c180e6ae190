"""Shapes of errors: one refusal as each API's clients expect it, as a whole answer and as an event."""

import msgspec

from cortex_gateway.errors import ApiError

type Headers = list[tuple[bytes, bytes]]


class Shape:
    """OpenAI's: `{"error": {"message", "type", "param", "code"}}`.

    `id_header` is where its clients look for the request id, besides x-request-id.
    """

    __slots__ = ()

    id_header: bytes | None = None

    def status(self, error: ApiError) -> int:
        """The HTTP status."""
        return error.status

    def body(self, error: ApiError, shown: bytes) -> bytes:
        """The JSON document; `shown` is the request id that the client sees."""
        return error.body()

    def event(self, error: ApiError, shown: bytes) -> bytes:
        """The error as an event of a stream that has begun."""
        return b"data: " + error.body() + b"\n\n"

    def headers(self, error: ApiError, shown: bytes) -> Headers:
        """Headers that belong to it, besides content type and length."""
        found = error.headers()
        if self.id_header is not None:
            found.append((self.id_header, shown))
        return found


class ResponsesShape(Shape):
    """OpenAI's, with typed events: `error` beside the event's own fields is what both SDKs raise on."""

    __slots__ = ()

    def event(self, error: ApiError, shown: bytes) -> bytes:
        data = msgspec.json.encode(
            {
                "type": "error",
                "code": error.code,
                "message": error.message,
                "param": error.param,
                "error": {
                    "message": error.message,
                    "type": error.type,
                    "param": error.param,
                    "code": error.code,
                },
            }
        )
        return b"event: error\ndata: " + data + b"\n\n"


# Anthropic's own names; a status that is not here is an `api_error` from 500 on, else an invalid request.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OVERLOADED = "server_is_overloaded"


class AnthropicShape(Shape):
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`, and 529 where all engines are busy."""

    __slots__ = ()

    id_header = b"request-id"

    def status(self, error: ApiError) -> int:
        return 529 if error.status == 503 and error.code == _OVERLOADED else error.status

    def body(self, error: ApiError, shown: bytes) -> bytes:
        status = self.status(error)
        kind = _ANTHROPIC_TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
        return msgspec.json.encode(
            {
                "type": "error",
                "error": {"type": kind, "message": error.message},
                "request_id": shown.decode("latin-1"),
            }
        )

    def event(self, error: ApiError, shown: bytes) -> bytes:
        return b"event: error\ndata: " + self.body(error, shown) + b"\n\n"


OPENAI = Shape()
RESPONSES = ResponsesShape()
ANTHROPIC = AnthropicShape()
