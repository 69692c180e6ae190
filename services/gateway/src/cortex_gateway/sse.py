"""Server-sent events of completions: cutting a stream into events, and what an event says."""

import re
from typing import Final

from cortex_gateway.completions import ERROR, EVENT, UNREADABLE, EngineUsage

_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_LINE: Final = re.compile(rb"\r\n|\n|\r")

DONE_EVENT: Final = b"data: [DONE]\n\n"

# vLLM ends what it gave up as if it had finished.
_ABORTED: Final = b'{"error":{"message":"The engine gave the request up.","type":"server_error","code":500}}'


class Reading:
    """What one event says. `opaque`: nothing that is known here."""

    __slots__ = ("content", "done", "error", "finished", "only_usage", "opaque", "usage")

    def __init__(self) -> None:
        self.content = False
        self.finished = False
        self.done = False
        self.opaque = False
        self.only_usage = False
        self.usage: EngineUsage | None = None
        self.error: bytes | None = None


# All engines known here end lines with LF alone, which is found at a fraction of the cost.


def split(buffer: bytes) -> tuple[list[bytes], bytes]:
    """(complete events with their blank line, what remains). Joined, they are the buffer again."""
    events: list[bytes] = []
    position = 0
    if buffer.find(b"\r") < 0:
        end = buffer.find(b"\n\n")
        while end >= 0:
            events.append(buffer[position : end + 2])
            position = end + 2
            end = buffer.find(b"\n\n", position)
    else:
        for match in _END.finditer(buffer):
            events.append(buffer[position : match.end()])
            position = match.end()
    return events, buffer[position:]


def ends(data: bytes | bytearray) -> bool:
    """Whether an event ends in it."""
    return _END.search(data) is not None


def data_of(event: bytes) -> bytes:
    """The event's data: its `data:` lines joined."""
    size = len(event)
    one_line = event.find(b"\n") == size - 2 and event[size - 1 :] == b"\n" and event.find(b"\r") < 0
    if one_line and event[:6] == b"data: ":
        return event[6 : size - 2]
    found: list[bytes] = []
    for line in _LINE.split(event):
        if line.startswith(b"data:"):
            found.append(line[6:] if line[5:6] == b" " else line[5:])
    return b"\n".join(found)


def read(event: bytes) -> Reading:
    """What an event says; a comment says nothing, data that is no JSON object of that kind is opaque."""
    reading, data = Reading(), data_of(event)
    if not data:
        return reading
    if data[:6] == b"[DONE]":
        reading.done = True
        return reading
    try:
        found = EVENT.decode(data)
    except UNREADABLE:
        reading.opaque = True
        return reading
    if found.error:
        reading.error = data
        return reading
    choices = found.choices
    if choices:
        for choice in choices:
            if choice.finish_reason is not None:
                reading.finished = True
                if choice.finish_reason == "abort":
                    reading.error = _ABORTED
                    return reading
            delta = choice.delta
            if choice.text or (delta is not None and delta.says):
                reading.content = True
    reading.usage = found.usage
    reading.only_usage = found.usage is not None and not choices
    return reading


_STATUSES = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "rate_limit_error": 429,
    "overloaded_error": 503,
}


def status_of(error: bytes) -> int:
    """The HTTP status that an error event stands for; 500 when it does not say."""
    try:
        found = ERROR.decode(error).error
    except UNREADABLE:
        return 500
    if isinstance(found.code, int) and 400 <= found.code < 600:
        return found.code
    return _STATUSES.get(found.type, 500) if isinstance(found.type, str) else 500
