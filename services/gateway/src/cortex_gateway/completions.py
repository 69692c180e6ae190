"""What is read of events and answers, by their JSON."""

import msgspec


class TokenDetails(msgspec.Struct):
    """Part of the prompt that the engine had in its cache."""

    cached_tokens: int | None = None


class EngineUsage(msgspec.Struct):
    """`usage` as engines send it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None


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


class EndedChoice(msgspec.Struct):
    """Why a choice of a whole answer ends."""

    finish_reason: object = None


class Completion(msgspec.Struct):
    """A chat completion or a completion, whole."""

    usage: EngineUsage | None = None
    choices: list[EndedChoice] | None = None


class Other(msgspec.Struct):
    """Any other answer."""

    id: object = None
    usage: AnyUsage | None = None
    # llama.cpp's own endpoints.
    tokens_evaluated: int | None = None
    tokens_predicted: int | None = None


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
COMPLETION = msgspec.json.Decoder(Completion)
OTHER = msgspec.json.Decoder(Other)
