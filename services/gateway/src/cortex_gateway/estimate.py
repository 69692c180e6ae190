"""Estimate: tokens that a request may come to, before anybody has counted them. Pure."""

from typing import Final

# What is learned of a route moves by this part of what each request shows.
_LEARN: Final = 0.1
_BYTES_PER_TOKEN: Final = 4.0
_COMPLETION_TOKENS: Final = 256.0
_COMPLETION_MAX_TOKENS: Final = 4096
_TOKENS_MAX: Final = 2**31
_CHOICES_MAX: Final = 1024


class Estimate:
    """What a route's requests came to: from it, what the next will."""

    __slots__ = ("_bytes_per_token", "_completion")

    def __init__(self) -> None:
        self._bytes_per_token = _BYTES_PER_TOKEN
        self._completion = _COMPLETION_TOKENS

    def prompt(self, body_bytes: int) -> int:
        """Tokens that a body of this size comes to."""
        return int(body_bytes / self._bytes_per_token) + 1

    @property
    def completion(self) -> int:
        """Tokens of an answer whose length the client did not bound."""
        return min(_COMPLETION_MAX_TOKENS, int(self._completion) + 1)

    def tokens(self, body_bytes: int, completion: float | None, choices: float | None) -> int:
        """Tokens that a request may come to. `completion`: for each of `choices` as the client bounds it."""
        most = self.completion if completion is None else int(max(0, min(completion, _TOKENS_MAX)))
        if choices is not None and choices > 1:
            most *= int(min(choices, _CHOICES_MAX))
        return int(body_bytes / self._bytes_per_token) + 1 + most

    def learn(self, body_bytes: int, prompt_tokens: int, completion_tokens: int) -> None:
        """What a request came to."""
        if prompt_tokens > 0:
            self._bytes_per_token += _LEARN * (body_bytes / prompt_tokens - self._bytes_per_token)
        self._completion += _LEARN * (completion_tokens - self._completion)
