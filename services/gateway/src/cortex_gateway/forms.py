"""Forms (multipart/form-data): the few small fields that the gateway wants, found and edited in place.

What a form carries may be tens of megabytes: it is searched, and never cut into parts.
"""

from collections.abc import Iterator

from cortex_gateway.body import NAME_MAX, check_name
from cortex_gateway.errors import ApiError, invalid_request
from cortex_gateway.wanted import Wanted

_PARTS_MAX = 128
_HEAD_MAX_BYTES = 4096
_BOUNDARY_MAX_BYTES = 70  # RFC 2046, 5.1.1
_FILE = b""
_TRUE = (b"true", b"1", b"on", b"yes")


class _Broken(ValueError):
    pass


def is_form(body: bytes) -> bool:
    """Whether a body is a form: no JSON begins as one."""
    return body.startswith(b"--")


def read(body: bytes) -> Wanted | ApiError:
    """What the form says, or the error to answer. Clients send fields before files: the rest is not read."""
    model: str | None = None
    stream = False
    try:
        for name, start, end in _fields(body):
            if name == _FILE and model is not None:
                break
            if name == b"model":
                # As many bytes as a name's characters may take, and some to see that there are more.
                model = body[start : min(end, start + 4 * NAME_MAX + 4)].decode()
            elif name == b"stream":
                stream = body[start : min(end, start + 8)].strip().lower() in _TRUE
    except UnicodeDecodeError:
        return invalid_request("`model` is no text.", param="model")
    except _Broken as error:
        return invalid_request(f"The form is malformed: {error}.")
    if model is None:
        return invalid_request("The form has no field `model`.", param="model")
    return check_name(model) or Wanted(model=model, stream=stream)


def with_model(body: bytes, model: str) -> bytes:
    """The form with another `model`; nothing else changes."""
    for name, start, end in _fields(body):
        if name == b"model":
            view = memoryview(body)
            return b"".join((view[:start], model.encode(), view[end:]))
    return body


def doubles_model(body: bytes) -> bool:
    """Whether `model` stands more than once, or could stand where only another reader sees it."""
    try:
        return sum(name == b"model" for name, _, _ in _fields(body)) != 1
    except _Broken:
        return True


def _fields(body: bytes) -> Iterator[tuple[bytes, int, int]]:
    # (name, start, end) of each part, up to the last; of a file no name and no end, which is searched for
    # only by who goes on. Without a preamble, as all clients write it, the body begins with its boundary.
    first = body.find(b"\r\n", 0, _BOUNDARY_MAX_BYTES + 4)
    if first < 3 or not body.startswith(b"--"):
        raise _Broken("it does not begin with its boundary")
    delimiter = b"\r\n" + body[:first]
    position = first
    for _ in range(_PARTS_MAX):
        if body.startswith(b"--", position):
            return
        head_end = body.find(b"\r\n\r\n", position, position + _HEAD_MAX_BYTES)
        if head_end < 0 or not body.startswith(b"\r\n", position):
            raise _Broken("a part has no head")
        name, start = _name(body[position + 2 : head_end]), head_end + 4
        if name == _FILE:
            yield name, start, -1
        end = body.find(delimiter, start)
        if end < 0:
            raise _Broken("a part has no end")
        if name != _FILE:
            yield name, start, end
        position = end + len(delimiter)
    raise _Broken(f"it has more than {_PARTS_MAX} parts")


def _name(head: bytes) -> bytes:
    names: list[bytes] = []
    for line in head.split(b"\r\n"):
        title, _, value = line.partition(b":")
        if title.strip().lower() != b"content-disposition":
            continue
        for parameter in value.split(b";")[1:]:
            key, _, said = parameter.partition(b"=")
            key = key.strip().lower()
            if key in (b"filename", b"filename*"):
                return _FILE
            if key in (b"name", b"name*"):
                names.append(said.strip().strip(b'"') if key == b"name" else b"\\")
    if len(names) != 1 or b"\\" in names[0] or not names[0]:
        raise _Broken("a part has no plain name")
    return names[0]
