"""Request bodies: what the gateway needs to know of one, and edits made on its bytes."""

import re

import msgspec

from cortex_gateway.errors import ApiError, invalid_request


class StreamOptions(msgspec.Struct):
    """`stream_options` as far as it matters here."""

    include_usage: bool | None = None


class Wanted(msgspec.Struct):
    """The few fields that are read; everything else passes untouched."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | float | None = None
    max_completion_tokens: int | float | None = None
    n: int | float | None = None
    user: str | None = None
    prompt_cache_key: str | None = None


_NAME_MAX = 1024
_DECODER = msgspec.json.Decoder(Wanted)
_PARAM = re.compile(r"at `\$\.([A-Za-z_]+)")
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]', re.DOTALL)
_ESCAPED = rb"[^\"\\]*(?:\\.[^\"\\]*)*"
_MODEL = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*("' + _ESCAPED + rb'")', re.DOTALL)


def read(body: bytes | bytearray) -> Wanted | ApiError:
    """What the body says, or the error to answer: malformed, not an object, no model, a wrong type."""
    try:
        wanted = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        return _explain(str(error))
    except msgspec.DecodeError as error:
        return invalid_request(f"The request body is not valid JSON: {error}.")
    except RecursionError:
        return invalid_request("The request body is nested too deeply.")
    except UnicodeDecodeError:
        return invalid_request("The request body is not valid UTF-8.")
    if not wanted.model:
        return invalid_request("The model's name is empty.", param="model")
    if len(wanted.model) > _NAME_MAX:
        return invalid_request(f"The model's name is longer than {_NAME_MAX} characters.", param="model")
    return wanted


def _explain(problem: str) -> ApiError:
    if "missing required field `model`" in problem:
        return invalid_request("The field `model` is missing.", param="model")
    found = _PARAM.search(problem)
    if found is None:
        return invalid_request(f"The request body must be a JSON object: {problem}.")
    return invalid_request(f"{problem.split(' - at ')[0]} in `{found[1]}`.", param=found[1])


def spans(body: bytes) -> list[tuple[str, int, int]]:
    """(key, start, end) of each value of the outermost object of a valid JSON document, in order.

    `end` may include white space after the value. One pass of a regular expression: used where a plain
    search cannot tell a key of the outermost object from one further inside.
    """
    found: list[tuple[str, int, int]] = []
    depth = 0
    key: str | None = None
    word = b""
    start = 0
    for match in _TOKEN.finditer(body):
        token = match[0]
        first = token[0]
        if first == 0x22:
            if depth == 1 and key is None:
                word = token
        elif token in (b"{", b"["):
            depth += 1
        elif token == b":":
            if depth == 1 and key is None:
                key, start = _key(word), match.end()
        else:
            if token != b",":
                depth -= 1
            ended = depth == 0 or (token == b"," and depth == 1)
            if ended and key is not None:
                found.append((key, start, match.start()))
                key = None
    return found


def _key(word: bytes) -> str:
    try:
        return msgspec.json.decode(word, type=str)
    except UnicodeDecodeError:
        return ""  # of those that are looked for it is none


def with_model(body: bytes, model: str) -> bytes:
    """The body with another `model` in the outermost object; nothing else changes."""
    name = msgspec.json.encode(model)
    matches = list(_MODEL.finditer(body))
    if len(matches) == 1:
        start, end = matches[0].span(1)
        return b"".join((body[:start], name, body[end:]))
    edited = body
    for key, start, end in reversed(spans(body)):
        if key == "model":
            edited = b"".join((edited[:start], name, edited[end:]))
    return edited


def with_usage(body: bytes, options: StreamOptions | None) -> bytes:
    """The body of a stream with `stream_options.include_usage` true; other options are kept."""
    if options is None and b'"stream_options"' not in body:
        end = body.rindex(b"}")
        return b"".join((body[:end], b',"stream_options":{"include_usage":true}', body[end:]))
    for key, start, end in reversed(spans(body)):
        if key == "stream_options":
            try:
                value = msgspec.json.decode(body[start:end], type=dict[str, msgspec.Raw] | None)
            except UnicodeDecodeError:
                value = None
            merged: dict[str, object] = {**(value or {}), "include_usage": True}
            return b"".join((body[:start], msgspec.json.encode(merged), body[end:]))
    end = body.rindex(b"}")
    return b"".join((body[:end], b',"stream_options":{"include_usage":true}', body[end:]))


def doubles_model(body: bytes) -> bool:
    """Whether `model` stands more than once in the outermost object.

    Readers differ in which one counts, so such a body could name an allowed model to the gateway and
    another to the engine.
    """
    if body.count(b"model") < 2 and b"\\u" not in body:
        return False
    return sum(key == "model" for key, _, _ in spans(body)) > 1
