"""CortexError and its kinds, each named by who must act to mend it."""


class CortexError(Exception):
    """Base of every error that a person may read.

    `code` is stable and meant for programs (`models.name_taken`), `field` names the offending input,
    `remedy` says what to do. `status` is the HTTP status that the kind maps to.
    """

    status = 500

    def __init__(
        self, message: str, *, code: str, field: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field
        self.remedy = remedy

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON shape that every admin error has: `{"error": {code, message, field, remedy}}`."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "field": self.field,
                "remedy": self.remedy,
            }
        }


class InvalidInput(CortexError):
    """The caller must change the request."""

    status = 400


class Unauthorized(CortexError):
    """The caller must say who they are."""

    status = 401


class Forbidden(CortexError):
    """The caller may not do this."""

    status = 403


class NotFound(CortexError):
    """What the caller named does not exist."""

    status = 404


class Conflict(CortexError):
    """The request does not fit the present state; look again, then decide."""

    status = 409


class Unavailable(CortexError):
    """Try again later: the only kind that is retried."""

    status = 503
