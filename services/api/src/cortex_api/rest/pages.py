"""Pages of lists: a limit and an opaque cursor."""

import base64
import binascii
import json
from typing import Annotated

from cortex_shared.errors import InvalidInput
from fastapi import Query
from pydantic import BaseModel, Field

LIMIT_MAX = 500
# What a column of type integer holds: a cursor beyond it is no place in any list of rows.
INTEGER_MAX = 2**31 - 1

Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="How many items at most.")]
Cursor = Annotated[
    str | None, Query(max_length=512, description="`next_cursor` of the page before; none: the first page.")
]


class Page[T](BaseModel):
    """Some items, and where to go on."""

    items: list[T]
    next_cursor: str | None = Field(
        default=None, description="Give it as `cursor` for the next page; null: this is the last."
    )


def encode_cursor(position: int | str) -> str:
    """A position in a list, opaque to clients."""
    return base64.urlsafe_b64encode(json.dumps([position]).encode()).decode().rstrip("=")


def _invalid() -> InvalidInput:
    return InvalidInput(
        "cursor is not one that this list gave",
        code="page.bad_cursor",
        field="cursor",
        remedy="give next_cursor of the page before, or leave it out",
    )


def decode_number(cursor: str | None) -> int:
    """The number that `encode_cursor` was given, 0 for no cursor. Raises InvalidInput."""
    if cursor is None:
        return 0
    found = _decode(cursor)
    if not isinstance(found, int) or not 0 <= found < 2**63:
        raise _invalid()
    return found


def decode_text(cursor: str | None) -> str:
    """The text that `encode_cursor` was given, empty for no cursor. Raises InvalidInput."""
    if cursor is None:
        return ""
    found = _decode(cursor)
    if not isinstance(found, str) or "\0" in found:
        raise _invalid()
    return found


def _decode(cursor: str) -> object:
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error) as error:
        raise _invalid() from error
    return found[0] if isinstance(found, list) and len(found) == 1 else None  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] (JSON of any form)
