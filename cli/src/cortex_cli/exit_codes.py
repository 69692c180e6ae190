"""What the exit codes of `cortex` mean: one for each thing that a script may want to tell apart."""

import enum

from cortex_shared.errors import (
    Conflict,
    CortexError,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthorized,
    Unavailable,
)


class ExitCode(enum.IntEnum):
    """Stable; listed in `cortex --help`."""

    ok = 0
    failed = 1
    usage = 2
    unreachable = 3
    not_found = 4
    conflict = 5
    refused = 6
    model_failed = 7
    interrupted = 130


MEANINGS = (
    "0 done · 1 failed · 2 wrong usage or input · 3 Cortex is not running or not reachable · 4 not found · "
    "5 conflict with the present state · 6 not allowed · 7 the model failed · 130 interrupted"
)


class ModelFailed(CortexError):
    """A model that was to run cannot; `message` and `remedy` are the model's own."""


def exit_code(error: CortexError) -> ExitCode:
    """The code for an error of the API, or of our own."""
    kinds: tuple[tuple[type[CortexError], ExitCode], ...] = (
        (ModelFailed, ExitCode.model_failed),
        (InvalidInput, ExitCode.usage),
        (NotFound, ExitCode.not_found),
        (Conflict, ExitCode.conflict),
        (Forbidden, ExitCode.refused),
        (Unauthorized, ExitCode.refused),
        (Unavailable, ExitCode.unreachable),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), ExitCode.failed)
