"""What is read of a completion's events and answers, by their JSON."""

import msgspec


class TokenDetails(msgspec.Struct):
    """Part of the prompt that the engine had in its cache."""

    cached_tokens: int | None = None


class EngineUsage(msgspec.Struct):
    """`usage` as engines send it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None


class Part(msgspec.Struct):
    """A piece of a message."""

    content: object = None
    reasoning_content: object = None
    reasoning: object = None
    refusal: object = None
    tool_calls: object = None
    function_call: object = None
    audio: object = None

    @property
    def says(self) -> bool:
        """Whether it holds anything that was generated."""
        return bool(
            self.content
            or self.reasoning_content
            or self.reasoning
            or self.tool_calls
            or self.refusal
            or self.function_call
            or self.audio
        )


class _Choice(msgspec.Struct):
    delta: Part | None = None
    text: object = None
    finish_reason: object = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: EngineUsage | None = None
    error: object = None


class _Error(msgspec.Struct):
    code: object = None
    type: object = None


class _ErrorEvent(msgspec.Struct):
    error: _Error


# msgspec reports text that is not UTF-8 in a way of its own.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
EVENT = msgspec.json.Decoder(_Event)
ERROR = msgspec.json.Decoder(_ErrorEvent)
