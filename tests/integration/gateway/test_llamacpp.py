"""The gateway before the real llama.cpp server: every endpoint that it has, in every engine's words."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cortex_llamacpp.tiny import STORY, write_tiny_model
from cortex_shared.contracts.routes import Route

from tests.integration.gateway.harness import Answer, Stand, chat, request, route, standing, table, until
from tests.integration.llamacpp.conftest import Engine, Start, starter

WORDS = STORY.split()
MODES = {"story": ("--parallel", "2"), "vectors": ("--embeddings",), "ranks": ("--rerank",)}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, Engine]]:
    """A server that tells STORY, one that embeds, and one that ranks."""
    folder = tmp_path_factory.mktemp("llamacpp")
    write_tiny_model(folder / "causal.gguf")
    write_tiny_model(folder / "embed.gguf", kind="embed")
    with starter(folder) as start:
        yield {
            name: healthy(start, folder / ("causal.gguf" if name == "story" else "embed.gguf"), *flags)
            for name, flags in MODES.items()
        }


def healthy(start: Start, model: Path, *flags: str) -> Engine:
    """A server that serves. Its port was free when it was chosen, and may be taken a moment later."""
    for _ in range(5):
        engine = start(model, *flags)
        try:
            engine.wait_healthy()
        except AssertionError:
            if engine.process.poll() is None:
                raise
            continue
        return engine
    raise AssertionError("no port stays free")


@asynccontextmanager
async def serving(engines: dict[str, Engine], journal: Path) -> AsyncGenerator[Stand]:
    """A gateway with a route to each."""
    routes: list[Route] = [
        route(engine.url, name=name, engine="llamacpp", context_length=2048)
        for name, engine in engines.items()
    ]
    strict = route(engines["story"].url, name="strict", engine="llamacpp", strict=True)
    async with standing(journal, *routes, strict) as running:
        try:
            yield running
        finally:
            # Closes the connections to engines, which outlive this test's loop.
            running.gateway.table.replace(table(version=2))
            await asyncio.sleep(0.01)


def story(**fields: Any) -> dict[str, Any]:
    return {**chat("Tell me a story, please."), "model": "story", "temperature": 0, **fields}


async def metered(stand: Stand, answer: Answer) -> tuple[int, int, int]:
    """(prompt, completion, cached) of the one request; its usage is the engine's."""
    assert answer.status == 200, answer.body
    record = await stand.one_record()
    assert (record.outcome, record.source) == ("done", "engine")
    return record.prompt_tokens, record.completion_tokens, record.cached_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_chat(engines: dict[str, Engine], journal: Path, *, stream: bool) -> None:
    async with serving(engines, journal) as stand:
        answer = await stand.post(story(max_tokens=5, stream=stream))
        text = answer.text if stream else answer.json["choices"][0]["message"]["content"]
        assert text.split() == WORDS[:5]
        prompt, completion, _ = await metered(stand, answer)
        assert (prompt > 10, completion) == (True, 5)


@pytest.mark.parametrize("stream", [False, True])
async def test_completions(engines: dict[str, Engine], journal: Path, *, stream: bool) -> None:
    async with serving(engines, journal) as stand:
        body = {"model": "story", "prompt": "x", "max_tokens": 4, "temperature": 0, "stream": stream}
        answer = await stand.post(body, "/v1/completions")
        events = [event for event in answer.events if event != "[DONE]"] if stream else [answer.json]
        assert "".join(event["choices"][0]["text"] for event in events).split() == WORDS[:4]
        assert await metered(stand, answer) == (1, 4, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_responses(engines: dict[str, Engine], journal: Path, *, stream: bool) -> None:
    async with serving(engines, journal) as stand:
        body = {"model": "story", "input": "Tell me a story", "max_output_tokens": 5, "temperature": 0}
        answer = await stand.post({**body, "stream": stream}, "/v1/responses")
        if stream:
            assert [name for name, _ in answer.typed].count("response.output_text.delta") == 5
            name, last = answer.typed[-1]
            assert name == "response.completed"
            response = last["response"]
        else:
            response = answer.json
        assert response["output"][0]["content"][0]["text"].split() == WORDS[:5]
        prompt, completion, _ = await metered(stand, answer)
        assert (prompt, completion) == (response["usage"]["input_tokens"], 5)
        # It keeps none.
        assert (await stand.get(f"/v1/responses/{response['id']}")).status in (400, 404)


@pytest.mark.parametrize("stream", [False, True])
async def test_messages(engines: dict[str, Engine], journal: Path, *, stream: bool) -> None:
    async with serving(engines, journal) as stand:
        body = {**story(max_tokens=5), "stream": stream}
        answer = await stand.post(body, "/v1/messages")
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
        if stream:
            deltas = [event["delta"]["text"] for name, event in answer.typed if name == "content_block_delta"]
            assert "".join(deltas).split() == WORDS[:5]
            assert answer.typed[-1][0] == "message_stop"
        else:
            assert answer.json["content"][0]["text"].split() == WORDS[:5]
        prompt, completion, cached = await metered(stand, answer)
        assert completion == 5
        counted = await stand.post(body, "/v1/messages/count_tokens")
        assert counted.json["input_tokens"] == prompt > cached


async def test_counting(engines: dict[str, Engine], journal: Path) -> None:
    async with serving(engines, journal) as stand:
        answer = await stand.post({"model": "story", "input": "hi"}, "/v1/responses/input_tokens")
        assert answer.json["input_tokens"] > 5


async def test_tokenize_and_detokenize(engines: dict[str, Engine], journal: Path) -> None:
    async with serving(engines, journal) as stand:
        text = "Once upon one"
        for path in ("/tokenize", "/v1/tokenize"):
            for name in ("prompt", "content"):
                answer = (await stand.post({"model": "story", name: text}, path)).json
                assert (answer["count"], len(answer["tokens"]), answer["max_model_len"]) == (3, 3, 2048)
        pieces = await stand.post({"model": "story", "prompt": text, "return_token_strs": True}, "/tokenize")
        assert pieces.json["token_strs"] == ["Once", " upon", " one"]
        tokens = {"model": "story", "tokens": pieces.json["tokens"]}
        assert (await stand.post(tokens, "/v1/detokenize")).json == {"prompt": text}


async def test_embeddings_and_rerank(engines: dict[str, Engine], journal: Path) -> None:
    async with serving(engines, journal) as stand:
        embedded = await stand.post({"model": "vectors", "input": ["a lake", "hot tea"]}, "/v1/embeddings")
        assert [len(each["embedding"]) for each in embedded.json["data"]] == [256, 256]
        assert (await metered(stand, embedded))[0] > 2
        body = {
            "model": "ranks",
            "query": "the lake",
            "documents": ["hot tea", "the lake", "a lamp"],
            "top_n": 2,
        }
        for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/reranking", "/v1/reranking"):
            ranked = await stand.post(body, path)
            assert len(ranked.json["results"]) == 2
            assert {"index", "relevance_score"} <= set(ranked.json["results"][0])
        await until(lambda: len(stand.records()) == 6)
        assert all(record.prompt_tokens for record in stand.records())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_completion_tokens": 2}, "Once upon"),
        ({"n_predict": 2}, "Once upon"),
        ({"max_tokens": 8, "guided_choice": ["yes", "no"]}, "yes"),
        ({"max_tokens": 8, "structured_outputs": {"choice": ["yes", "no"]}}, "yes"),
        ({"max_tokens": 8, "structured_outputs": {"grammar": 'root ::= "no" " way"'}}, "no way"),
        ({"max_tokens": 8, "guided_json": {"type": "string", "enum": ["a"]}}, '"a"'),
        ({"max_tokens": 8, "grammar": 'root ::= "no"'}, "no"),
        # It would not stop there if it were penalized for what it says.
        ({"max_tokens": 2, "repetition_penalty": 1.0}, "Once upon"),
    ],
)
async def test_parameters_do_what_they_say(
    engines: dict[str, Engine], journal: Path, fields: dict[str, Any], expected: str
) -> None:
    async with serving(engines, journal) as stand:
        for model in ("story", "strict"):
            answer = await stand.post({**story(**fields), "model": model})
            assert answer.status == 200, answer.body
            assert answer.json["choices"][0]["message"]["content"] == expected
            assert "x-cortex-ignored" not in answer.headers


async def test_a_penalty_in_vllms_words_is_felt(engines: dict[str, Engine], journal: Path) -> None:
    async with serving(engines, journal) as stand:
        body = {"model": "story", "prompt": " one upon", "max_tokens": 1, "temperature": 0}
        plain = await stand.post(body, "/v1/completions")
        theirs = await stand.post({**body, "repeat_penalty": 100.0}, "/v1/completions")
        ours = await stand.post({**body, "repetition_penalty": 100.0}, "/v1/completions")
        texts = [answer.json["choices"][0]["text"] for answer in (plain, theirs, ours)]
        assert texts[0] != texts[1] == texts[2]


async def test_what_it_lacks_is_named_or_refused(engines: dict[str, Engine], journal: Path) -> None:
    async with serving(engines, journal) as stand:
        named = await stand.post(story(max_tokens=2, stop_token_ids=[5], min_tokens=1))
        assert (named.status, named.headers["x-cortex-ignored"]) == (200, "stop_token_ids, min_tokens")
        refused = await stand.post({**story(stop_token_ids=[5]), "model": "strict"})
        assert (refused.status, refused.error["param"]) == (400, "stop_token_ids")
        for path in (
            "/score",
            "/v1/moderations",
            "/v1/images/generations",
            "/v1/audio/speech",
            "/v1/pooling",
        ):
            answer = await stand.post({"model": "story", "input": "x"}, path)
            assert (answer.status, answer.error["code"]) == (400, "endpoint_not_supported")


async def test_its_errors_take_each_apis_shape(engines: dict[str, Engine], journal: Path) -> None:
    async with serving(engines, journal) as stand:
        chatty = await stand.post({**story(), "messages": "hi"})
        assert (chatty.status, chatty.error["code"]) == (400, None)
        lacking = await stand.post({"model": "story", "max_tokens": 3}, "/v1/messages")
        assert (lacking.status, lacking.anthropic_error["type"]) == (400, "invalid_request_error")
        # Not possible with this model: nothing that another attempt, or the client's, could mend.
        for path, body in (
            ("/v1/rerank", {"query": "a", "documents": ["b"]}),
            ("/infill", {"input_prefix": "a"}),
        ):
            answer = await stand.post({"model": "story", **body}, path)
            assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert {
            endpoint.evidence.failures for r in stand.gateway.table.routes() for endpoint in r.endpoints
        } == {0}


async def test_a_client_that_leaves_frees_the_slot(engines: dict[str, Engine], journal: Path) -> None:
    async with serving(engines, journal) as stand:
        raw = await stand.connect()
        body = {**story(max_tokens=2000, ignore_eos=True), "stream": True}
        raw.send(request(body, "/v1/messages"))
        for _ in range(40):
            await raw.line()
        raw.abort()
        record = await stand.one_record()
        assert record.outcome == "client_left"
        assert 0 < record.completion_tokens < 2000
        assert record.prompt_tokens > 5
        answers = [await stand.post(story(max_tokens=1)) for _ in range(3)]
        assert [answer.status for answer in answers] == [200] * 3
        assert engines["story"].process.poll() is None
