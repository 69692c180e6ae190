"""Request bodies: what the gateway needs to know of one, and edits made on its bytes."""

import re
from typing import Final

import msgspec

from cortex_gateway.completions import UNREADABLE
from cortex_gateway.errors import ApiError, invalid_request
from cortex_gateway.gist import SMALL_BYTES, gist
from cortex_gateway.wanted import ANYTHING, PLAIN, WANTED, StreamOptions, Wanted, count_models

USAGE_FIELD: Final = b'"stream_options":{"include_usage":true}'
NAME_MAX: Final = 1024
_PARAM = re.compile(r"at `\$\.([A-Za-z_]+)")
_NEAR_BYTES: Final = 4096
_BACKSLASH: Final = 0x5C
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]', re.DOTALL)
_ESCAPED: Final = rb"[^\"\\]*(?:\\.[^\"\\]*)*"
_MODEL = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*("' + _ESCAPED + rb'")', re.DOTALL)


def read(body: bytes) -> Wanted | ApiError:
    """What the body says, or the error to answer: malformed, not an object, no model, a wrong type."""
    if len(body) >= SMALL_BYTES:
        found = read_gist(gist(body))
        if found is not None:
            return found
    return read_whole(body)


def read_whole(body: bytes) -> Wanted | ApiError:
    """The same without its gist, which was not enough."""
    try:
        try:
            wanted = PLAIN.decode(body)
        except msgspec.ValidationError:
            wanted = WANTED.decode(body)
    except msgspec.ValidationError as error:
        return _explain(str(error))
    except msgspec.DecodeError as error:
        return invalid_request(f"The request body is not valid JSON: {error}.")
    except RecursionError:
        return invalid_request("The request body is nested too deeply.")
    except UnicodeDecodeError:
        return invalid_request("The request body is not valid UTF-8.")
    return check_name(wanted.model) or wanted


def read_gist(gist: bytes) -> Wanted | ApiError | None:
    """What a body of this gist says; None if the gist is not enough."""
    try:
        wanted = PLAIN.decode(gist)
    except UNREADABLE:
        return None
    return check_name(wanted.model) or wanted


def check_name(model: str) -> ApiError | None:
    """The error in a model's name that no model can have."""
    if not model:
        return invalid_request("The model's name is empty.", param="model")
    if len(model) > NAME_MAX:
        return invalid_request(f"The model's name is longer than {NAME_MAX} characters.", param="model")
    return None


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
    """The body with another `model` in the outermost object; nothing else changes. Of several the last, which
    all readers known here take, is the one that must.

    Most bodies have it first, or with little after it: then no more is read than to that one, the last.
    """
    name = msgspec.json.encode(model)
    last = body.rfind(b'"model"')
    found = _MODEL.match(body, last) if last >= 0 else None
    if found is not None and (_is_first(body, last) or _ends_outermost(body, last, found.end())):
        start, end = found.span(1)
        return b"%b%b%b" % (body[:start], name, body[end:])
    matches = list(_MODEL.finditer(body))
    # The only one, unless it is the end of another name or the right one is spelled with escapes.
    if len(matches) == 1 and body[matches[0].start() - 1] != _BACKSLASH and b"\\u" not in body:
        start, end = matches[0].span(1)
        return b"".join((body[:start], name, body[end:]))
    edited = body
    for key, start, end in reversed(spans(body)):
        if key == "model":
            edited = b"".join((edited[:start], name, edited[end:]))
    return edited


def _is_first(body: bytes, key: int) -> bool:
    # Whether a key is the first of the outermost object.
    return key < _NEAR_BYTES and body[:key].strip() == b"{"


def _ends_outermost(body: bytes, key: int, end: int) -> bool:
    # Whether a key, whose value ends at `end`, is of the outermost object, of which little is left: if what
    # is left is an object but for its beginning, then its last bracket, the body's last, closes the key's
    # object. A quote with no backslash before it begins or ends a string, and none ends before a word.
    rest = body[end : end + _NEAR_BYTES + 1].strip()
    if len(body) - end > _NEAR_BYTES or body[key - 1] == _BACKSLASH:
        return False
    if not rest.startswith(b","):
        return rest == b"}"
    try:
        ANYTHING.decode(b"{" + rest[1:])
    except UNREADABLE:
        return False
    return True


def with_usage(body: bytes, options: StreamOptions | msgspec.UnsetType | None) -> bytes:
    """The body of a stream with `stream_options.include_usage` true; other options are kept."""
    if options is msgspec.UNSET:
        return _added(body, USAGE_FIELD)
    for key, start, end in reversed(spans(body)):
        if key == "stream_options":
            try:
                value = msgspec.json.decode(body[start:end], type=dict[str, msgspec.Raw] | None)
            except UnicodeDecodeError:
                value = None
            merged: dict[str, object] = {**(value or {}), "include_usage": True}
            # Without include_usage it means nothing: the client must not get usage that it did not ask for.
            merged.pop("continuous_usage_stats", None)
            return b"".join((body[:start], msgspec.json.encode(merged), body[end:]))
    return _added(body, USAGE_FIELD)


def _added(body: bytes, field: bytes) -> bytes:
    # To an object that is not empty, at its end.
    end = body.rindex(b"}")
    return b"%b,%b%b" % (body[:end], field, body[end:])


def doubles_model(body: bytes) -> bool:
    """Whether `model` stands more than once in the outermost object of a valid body.

    Readers differ in which one counts, so such a body could name an allowed model to the gateway and
    another to the engine.
    """
    doubles = gist_doubles_model(gist(body))
    return count_models(body) > 1 if doubles is None else doubles


def gist_doubles_model(gist: bytes) -> bool | None:
    """The same of a body of this gist; None if the gist is not enough."""
    try:
        return count_models(gist) > 1
    except UNREADABLE:
        return None
