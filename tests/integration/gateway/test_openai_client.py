"""The official Python client against the gateway: every endpoint, every class of error."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from tests.fakes.upstream import PROMPT_TOKENS, Reply, Upstream
from tests.integration.gateway.harness import KEY, Stand, key_record, route, standing


@asynccontextmanager
async def client_of(stand: Stand, *, key: str = KEY, retries: int = 0) -> AsyncGenerator[AsyncOpenAI]:
    """A client of a gateway."""
    async with AsyncOpenAI(
        base_url=f"{stand.url}/v1", api_key=key, max_retries=retries, timeout=10
    ) as client:
        yield client


async def test_every_endpoint(journal: Path) -> None:
    async with (
        Upstream() as engine,
        standing(journal, route(engine, aliases=["a/b"])) as stand,
        client_of(stand) as client,
    ):
        chat = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert chat.choices[0].message.content == "t0 t1 t2 "
        assert chat._request_id  # pyright: ignore[reportPrivateUsage] (documented so by the SDK)
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        text = ""
        async for part in stream:
            text += part.choices[0].delta.content or ""
        assert text == "t0 t1 t2 "
        asked = await client.chat.completions.create(
            model="m", messages=[], stream=True, stream_options={"include_usage": True}
        )
        usage = [part.usage async for part in asked][-1]
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (PROMPT_TOKENS, 3)
        completion = await client.completions.create(model="m", prompt="hi")
        assert completion.choices[0].text == "t0 t1 t2 "
        vector = await client.embeddings.create(model="m", input="hi")
        assert vector.data[0].embedding == [1.0, 2.0]
        assert engine.requests[-1].body["encoding_format"] == "base64"
        plain = await client.embeddings.create(model="m", input="hi", encoding_format="float")
        assert plain.data[0].embedding == [1.0, 2.0]
        assert [model.id async for model in client.models.list()] == ["m"]
        assert (await client.models.retrieve("a/b")).id == "a/b"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_errors_of_the_engine(
    journal: Path, status: int, expected: type[openai.APIStatusError]
) -> None:
    async with (
        Upstream(Reply(status=status)) as engine,
        standing(journal, route(engine)) as stand,
        client_of(stand) as client,
    ):
        for stream in (False, True):
            with pytest.raises(expected) as caught:
                await client.chat.completions.create(model="m", messages=[], stream=stream)
            assert "told to fail" in caught.value.message
            assert caught.value.request_id


async def test_errors_of_the_gateway(journal: Path) -> None:
    keys = [key_record(models=["m"])]
    async with (
        Upstream() as engine,
        standing(journal, route(engine), route(engine, name="n"), keys=keys) as stand,
        client_of(stand, key="sk-no") as stranger,
        client_of(stand) as client,
    ):
        with pytest.raises(openai.AuthenticationError) as unknown:
            await stranger.models.list()
        assert unknown.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await stranger.chat.completions.create(model="m", messages=[])
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model="n", messages=[])
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="x", messages=[])
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.chat.completions.create(model="m", messages=[], extra_body={"max_tokens": "many"})
        assert wrong.value.param == "max_tokens"


async def test_a_broken_stream_raises(journal: Path) -> None:
    async with (
        Upstream(Reply(die="mid_event")) as engine,
        standing(journal, route(engine)) as stand,
        client_of(stand) as client,
    ):
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        texts: list[str | None] = []

        async def read() -> None:
            async for part in stream:
                texts.append(part.choices[0].delta.content)

        with pytest.raises(openai.APIError, match="broke off"):
            await read()
        assert texts[1:] == ["t0 ", "t1 ", "t2 "]


async def test_the_clients_own_retry_gets_through(journal: Path) -> None:
    async with (
        Upstream() as engine,
        standing(journal, route(engine)) as stand,
        client_of(stand, retries=1) as client,
    ):
        engine.replies.append(Reply(status=500))
        chat = await client.chat.completions.create(model="m", messages=[])
        assert chat.choices[0].message.content == "t0 t1 t2 "
        assert len(engine.requests) == 2
