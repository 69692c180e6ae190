"""A chat with a model through the gateway, as any OpenAI client has it."""

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import cast

import httpx
from cortex_shared.errors import CortexError, NotFound, Unauthorized, Unavailable

from cortex_cli.shapes import Json

type Message = dict[str, str]

_SECONDS = httpx.Timeout(10, read=600)


class Chat:
    """`url` is the gateway's, without /v1."""

    def __init__(self, url: str, key: str) -> None:
        self._base = f"{url.rstrip('/')}/v1"
        self._url = f"{self._base}/chat/completions"
        self._headers = {"Authorization": f"Bearer {key}"}

    def answer(self, model: str, messages: list[Message], options: Json) -> Json:
        """A whole answer, as the gateway gave it. Raises CortexError."""
        body = {"model": model, "messages": messages, **options}
        with _translated(self._url), httpx.Client(timeout=_SECONDS) as http:
            response = http.post(self._url, json=body, headers=self._headers)
        if response.is_error:
            raise _error(response)
        return cast("Json", response.json())

    def embedding_length(self, model: str, text: str) -> int:
        """How many numbers the embedding of a text has. Raises CortexError."""
        body = {"model": model, "input": text}
        with _translated(self._base), httpx.Client(timeout=_SECONDS) as http:
            response = http.post(f"{self._base}/embeddings", json=body, headers=self._headers)
        if response.is_error:
            raise _error(response)
        return len(cast("Json", response.json())["data"][0]["embedding"])

    @contextmanager
    def stream(self, model: str, messages: list[Message], options: Json) -> Generator[Iterator[str]]:
        """The answer's text in pieces, as they come. Raises CortexError, also in the middle."""
        body = {"model": model, "messages": messages, "stream": True, **options}
        with (
            _translated(self._url),
            httpx.Client(timeout=_SECONDS) as http,
            http.stream("POST", self._url, json=body, headers=self._headers) as response,
        ):
            if response.is_error:
                response.read()
                raise _error(response)
            yield _pieces(response)


def _pieces(response: httpx.Response) -> Iterator[str]:
    for line in response.iter_lines():
        text = line.removeprefix("data:").strip()
        if not line.startswith("data:") or text == "[DONE]":
            continue
        event = cast("Json", json.loads(text))
        if "error" in event:
            raise Unavailable(
                str(event["error"].get("message")),
                code="chat.broken",
                remedy="Ask again; see `cortex models list`.",
            )
        for choice in cast("list[Json]", event.get("choices") or []):
            piece = cast("Json", choice.get("delta") or {}).get("content")
            if piece:
                yield str(piece)


def _error(response: httpx.Response) -> CortexError:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The gateway answers {response.status_code}."
    if response.status_code in (401, 403):
        return Unauthorized(message, code="chat.refused", remedy="See `cortex keys list`.")
    if response.status_code == 404:
        return NotFound(message, code="chat.no_model", remedy="See `cortex models list`.")
    if response.status_code in (429, 503):
        return Unavailable(message, code="chat.unavailable", remedy="See `cortex models list`, or try again.")
    return CortexError(message, code="chat.failed", remedy="See `cortex models logs`.")


@contextmanager
def _translated(url: str) -> Generator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise Unavailable(
            f"The gateway at {url} does not answer: {error or type(error).__name__}.",
            code="chat.unreachable",
            remedy="See `cortex status` and `cortex doctor`.",
        ) from error
