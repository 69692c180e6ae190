"""The official `openai` client against the running system: what it offers, and each class of error."""

import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from cortex_llamacpp.tiny import STORY

from tests.e2e.system import System

QUESTION: list[Any] = [{"role": "user", "content": "Tell me a story, please."}]
BEGINNING = " ".join(STORY.split()[:12])


@pytest.fixture
def client(system: System) -> Iterator[openai.OpenAI]:
    with _client(system, system.access["api_key"]) as made:
        yield made


def _client(system: System, key: str) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{system.access['gateway_url']}/v1", api_key=key, max_retries=0, timeout=60
    )


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="story", messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == STORY
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "story"
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= len(STORY.split())


def test_chat_cut_short(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="story", messages=QUESTION, temperature=0, max_tokens=12)
    assert answer.choices[0].message.content == BEGINNING
    assert answer.choices[0].finish_reason == "length"


def test_streaming(client: openai.OpenAI) -> None:
    pieces: list[str] = []
    usage = None
    with client.chat.completions.create(
        model="story", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as events:
        for event in events:
            pieces += [choice.delta.content or "" for choice in event.choices]
            usage = event.usage or usage
    assert "".join(pieces) == STORY
    assert len([piece for piece in pieces if piece]) > 10
    assert usage is not None
    assert usage.completion_tokens >= len(STORY.split())


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="story", prompt=" ".join(STORY.split()[:4]), temperature=0, max_tokens=8
    )
    assert answer.choices[0].text.strip() == " ".join(STORY.split()[4:12])
    with client.completions.create(
        model="story", prompt="Once", temperature=0, max_tokens=4, stream=True
    ) as events:
        assert "".join(event.choices[0].text for event in events if event.choices).strip()


def test_embeddings(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="vectors", input=["a lighthouse", "seven robots"])
    first, second = (item.embedding for item in found.data)
    assert len(first) == len(second) == 256
    assert math.isclose(sum(x * x for x in first), 1.0, rel_tol=1e-3)
    assert first != second
    assert found.usage.prompt_tokens > 0


def test_models(client: openai.OpenAI) -> None:
    assert {"story", "vectors"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("story").id == "story"


def test_a_wrong_key_is_refused(system: System) -> None:
    with _client(system, "sk-cortex-wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="story", messages=QUESTION)
    assert caught.value.status_code == 401


def test_a_key_for_another_model_is_forbidden_or_does_not_see_it(system: System) -> None:
    key = system.json("keys", "create", "narrow", "--model", "vectors")["key"]
    with _client(system, key) as client:
        _until_known(client)
        with pytest.raises((openai.PermissionDeniedError, openai.NotFoundError)):
            client.chat.completions.create(model="story", messages=QUESTION)
        assert [model.id for model in client.models.list()] == ["vectors"]


def test_a_revoked_key_is_refused_within_a_second(system: System) -> None:
    made = system.json("keys", "create", "short-lived")
    with _client(system, made["key"]) as client:
        _until_known(client)
        system.cortex("keys", "revoke", str(made["id"]))
        # The command itself takes longer than a second to end; what counts is that it is refused now.
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=QUESTION)
    assert "nobody" in str(caught.value)


@pytest.mark.parametrize(
    "extra",
    [{"messages": QUESTION, "max_tokens": "many"}, {"messages": "text"}],
)
def test_a_bad_request_is_told(client: openai.OpenAI, extra: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        client.post("/chat/completions", body={"model": "story", **extra}, cast_to=httpx.Response)


def test_a_body_that_is_no_json_is_a_bad_request(system: System) -> None:
    answer = httpx.post(
        f"{system.access['gateway_url']}/v1/chat/completions",
        headers={"Authorization": f"Bearer {system.access['api_key']}"},
        content=b'{"model": "story", ',
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_model_that_is_not_ready_is_unavailable_or_not_found(system: System, client: openai.OpenAI) -> None:
    file = str(system.home / "models" / "story.gguf")
    system.cortex("models", "create", "asleep", "--engine=llamacpp", "--set", f"local_path={file}")
    with pytest.raises((openai.InternalServerError, openai.NotFoundError)) as caught:
        client.chat.completions.create(model="asleep", messages=QUESTION)
    assert caught.value.status_code in (404, 503)
    assert "asleep" in str(caught.value)
    system.cortex("models", "delete", "asleep")


def _until_known(client: openai.OpenAI) -> None:
    """A new key reaches the gateway within a second or so."""
    for _ in range(100):
        try:
            client.models.list()
        except openai.AuthenticationError:
            continue
        return
    raise AssertionError("the gateway does not get to know a new key")
