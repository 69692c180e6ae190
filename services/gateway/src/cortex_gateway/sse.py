"""Server-sent events of completions: cutting a stream into events, and what an event says."""

import re

import msgspec

_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_LINE = re.compile(rb"\r\n|\n|\r")

DONE_EVENT = b"data: [DONE]\n\n"


class TokenDetails(msgspec.Struct):
    """Part of the prompt that the engine had in its cache."""

    cached_tokens: int | None = None


class EngineUsage(msgspec.Struct):
    """`usage` as engines send it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None


class _Part(msgspec.Struct):
    content: object = None
    reasoning_content: object = None
    reasoning: object = None
    refusal: object = None
    tool_calls: object = None
    function_call: object = None
    audio: object = None


class _Choice(msgspec.Struct):
    delta: _Part | None = None
    text: object = None
    finish_reason: object = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: EngineUsage | None = None
    error: object = None


class Reading(msgspec.Struct):
    """What one event says."""

    content: bool = False
    finished: bool = False
    done: bool = False
    only_usage: bool = False
    usage: EngineUsage | None = None
    error: bytes | None = None
    opaque: bool = False


class _Error(msgspec.Struct):
    code: object = None
    type: object = None


class _ErrorEvent(msgspec.Struct):
    error: _Error


# vLLM ends what it gave up as if it had finished.
_ABORTED = b'{"error":{"message":"The engine gave the request up.","type":"server_error","code":500}}'

# msgspec reports text that is not UTF-8 in a way of its own.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_EVENT = msgspec.json.Decoder(_Event)
_ERROR = msgspec.json.Decoder(_ErrorEvent)


def split(buffer: bytes) -> tuple[list[bytes], bytes]:
    """(complete events with their blank line, what remains). Joined, they are the buffer again."""
    events: list[bytes] = []
    position = 0
    for match in _END.finditer(buffer):
        events.append(buffer[position : match.end()])
        position = match.end()
    return events, buffer[position:]


def ends(data: bytes | bytearray) -> bool:
    """Whether an event ends in it."""
    return _END.search(data) is not None


def data_of(event: bytes) -> bytes:
    """The event's data: its `data:` lines joined."""
    found: list[bytes] = []
    for line in _LINE.split(event):
        if line.startswith(b"data:"):
            found.append(line[6:] if line[5:6] == b" " else line[5:])
    return b"\n".join(found)


def read(event: bytes) -> Reading:
    """What an event says; a comment says nothing, data that is no JSON object of that kind is opaque."""
    data = data_of(event)
    if not data:
        return Reading()
    if data.startswith(b"[DONE]"):
        return Reading(done=True)
    try:
        found = _EVENT.decode(data)
    except UNREADABLE:
        return Reading(opaque=True)
    if found.error:
        return Reading(error=data)
    content = finished = False
    for choice in found.choices or ():
        delta = choice.delta
        finished = finished or choice.finish_reason is not None
        if choice.finish_reason == "abort":
            return Reading(error=_ABORTED)
        content = content or bool(choice.text)
        if delta is not None:
            content = content or bool(
                delta.content
                or delta.reasoning_content
                or delta.reasoning
                or delta.tool_calls
                or delta.refusal
                or delta.function_call
                or delta.audio
            )
    only_usage = found.usage is not None and not found.choices
    return Reading(content=content, finished=finished, only_usage=only_usage, usage=found.usage)


_STATUSES = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "rate_limit_error": 429,
    "overloaded_error": 503,
}


def status_of(error: bytes) -> int:
    """The HTTP status that an error event stands for; 500 when it does not say."""
    try:
        found = _ERROR.decode(error).error
    except UNREADABLE:
        return 500
    if isinstance(found.code, int) and 400 <= found.code < 600:
        return found.code
    return _STATUSES.get(found.type, 500) if isinstance(found.type, str) else 500
