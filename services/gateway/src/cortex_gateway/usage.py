"""Usage and what else the gateway wants of an answer that is no stream, in every API's spelling."""

from typing import Final

from cortex_gateway.completions import COMPLETION, OTHER, UNREADABLE, EndedChoice, EngineUsage

_USAGE: Final = b'"usage":'
_USAGE_BYTES: Final = len(_USAGE)
_ABORT: Final = b'"abort"'
_BACKSLASH: Final = 0x5C
_NESTED_MAX: Final = 8
_NEAR_BYTES: Final = 4096


class Answer:
    """What is read of a whole answer. `id`: of a response that may be asked for again."""

    __slots__ = ("aborted", "id", "usage")

    def __init__(self, usage: EngineUsage | None, *, aborted: bool = False, id: str | None = None) -> None:
        self.usage = usage
        self.aborted = aborted
        self.id = id


_NOTHING = Answer(None)


def of_completion(answer: bytes) -> Answer:
    """Of a chat completion or a completion."""
    # vLLM ends what it gave up with status 200. Compiled, `in` costs three times what `find` does.
    part = usage_part(answer)
    if part and answer.find(_ABORT) < 0:
        try:
            usage = COMPLETION.decode(part).usage
        except UNREADABLE:
            usage = None
        if usage is not None:
            return Answer(usage)
    try:
        found = COMPLETION.decode(answer)
    except UNREADABLE:
        return _NOTHING
    choices = found.choices
    return Answer(found.usage, aborted=choices is not None and _aborted(choices))


def _aborted(choices: list[EndedChoice]) -> bool:
    return bool(choices) and choices[0].finish_reason == "abort"


def of_vectors(answer: bytes) -> Answer:
    """Of embeddings, which are so many numbers that to pass over them holds up everybody else."""
    part = usage_part(answer)
    if part:
        try:
            usage = OTHER.decode(part).usage
        except UNREADABLE:
            usage = None
        if usage is not None:
            return Answer(usage.counted())
    return of_other(answer)


def of_other(answer: bytes) -> Answer:
    """Of any other JSON answer."""
    try:
        found = OTHER.decode(answer)
    except UNREADABLE:
        return _NOTHING
    usage = found.usage.counted() if found.usage is not None else None
    if usage is None and found.tokens_evaluated is not None:
        usage = EngineUsage(found.tokens_evaluated, found.tokens_predicted)
    return Answer(usage, id=found.id if isinstance(found.id, str) else None)


def of_nothing(answer: bytes) -> Answer:
    """Of an answer that repeats what was counted already."""
    return _NOTHING


def usage_part(answer: bytes) -> bytes:
    """What is before `usage` in a valid answer or what is behind it, whichever is less, as an object with it.

    To pass over a text or numbers as JSON takes a hundred times as long as to search them. That the part is
    one object says that `usage` is a field of the outermost one: that of another would leave a bracket too
    many, or too few. Empty: there is none, or it is spelled in another way.
    """
    # It stands near the end, or near the beginning.
    at = answer.rfind(_USAGE, max(0, len(answer) - _NEAR_BYTES))
    if at < 0:
        at = answer.find(_USAGE, 0, _NEAR_BYTES)
    # In a text it would have a backslash before its second quote; before its first, it ends a name.
    if at < 1 or answer[at - 1] == _BACKSLASH:
        return b""
    if len(answer) - at <= at:
        return b"{" + answer[at:]
    end = answer.find(b"}", at)
    for _ in range(_NESTED_MAX):
        value = answer[at + _USAGE_BYTES : end + 1]
        if end < 0 or value.count(b"{") <= value.count(b"}"):
            break
        end = answer.find(b"}", end + 1)
    return answer[: end + 1] + b"}" if end >= 0 else b""
