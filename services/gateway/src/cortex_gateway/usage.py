"""Usage and what else the gateway wants of an answer that is no stream, in every API's spelling."""

from cortex_gateway.completions import COMPLETION, OTHER, UNREADABLE, EndedChoice, EngineUsage


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
    try:
        found = COMPLETION.decode(answer)
    except UNREADABLE:
        return _NOTHING
    choices = found.choices
    # vLLM ends what it gave up with status 200.
    return Answer(found.usage, aborted=choices is not None and _aborted(choices))


def _aborted(choices: list[EndedChoice]) -> bool:
    return bool(choices) and choices[0].finish_reason == "abort"


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
