"""Usage and what else the gateway wants of an answer that is no stream, in every API's spelling."""

from typing import Protocol

import msgspec

from cortex_gateway.completions import UNREADABLE, EngineUsage, TokenDetails


class AnyUsage(msgspec.Struct):
    """`usage` of the Responses and Messages APIs, and of everything else that counts tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: TokenDetails | None = None
    # Anthropic's `input_tokens` are those that were neither read from a cache nor written to one.
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def counted(self) -> EngineUsage:
        """The same in the spelling of chat completions."""
        read = self.cache_read_input_tokens
        prompt = self.prompt_tokens
        if prompt is None and self.input_tokens is not None:
            prompt = self.input_tokens + (read or 0) + (self.cache_creation_input_tokens or 0)
        completion = self.completion_tokens if self.completion_tokens is not None else self.output_tokens
        details = self.prompt_tokens_details or self.input_tokens_details
        return EngineUsage(prompt, completion, TokenDetails(read) if read is not None else details)


class Answer(Protocol):
    """What is read of a whole answer. `id`: of a response that may be asked for again."""

    @property
    def usage(self) -> EngineUsage | None: ...
    @property
    def aborted(self) -> bool: ...
    @property
    def id(self) -> str | None: ...


class _Choice(msgspec.Struct):
    finish_reason: object = None


class Completion(msgspec.Struct):
    """A chat completion or a completion."""

    usage: EngineUsage | None = None
    choices: list[_Choice] | None = None

    @property
    def id(self) -> None:
        """It cannot be asked for again."""

    @property
    def aborted(self) -> bool:
        """vLLM ends what it gave up with status 200."""
        choices = self.choices
        return bool(choices) and choices[0].finish_reason == "abort"


class Other(msgspec.Struct):
    """Any other answer."""

    usage: EngineUsage | None = None
    id: str | None = None

    @property
    def aborted(self) -> bool:
        """Never, in words that are known."""
        return False


class _Other(msgspec.Struct):
    id: object = None
    usage: AnyUsage | None = None
    # llama.cpp's own endpoints.
    tokens_evaluated: int | None = None
    tokens_predicted: int | None = None


_COMPLETION = msgspec.json.Decoder(Completion)
_OTHER = msgspec.json.Decoder(_Other)
_NOTHING = Other()


def of_completion(answer: bytes) -> Answer:
    """Of a chat completion or a completion."""
    try:
        return _COMPLETION.decode(answer)
    except UNREADABLE:
        return _NOTHING


def of_other(answer: bytes) -> Answer:
    """Of any other JSON answer."""
    try:
        found = _OTHER.decode(answer)
    except UNREADABLE:
        return _NOTHING
    usage = found.usage.counted() if found.usage is not None else None
    if usage is None and found.tokens_evaluated is not None:
        usage = EngineUsage(found.tokens_evaluated, found.tokens_predicted)
    return Other(usage, found.id if isinstance(found.id, str) else None)


def of_nothing(answer: bytes) -> Answer:
    """Of an answer that repeats what was counted already."""
    return _NOTHING
