"""The endpoints besides chat: what they give, in whose words, what is metered, and how they fail."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from cortex_shared.contracts.routes import TimeLimits

from tests.fakes.surfaces import (
    CACHED_TOKENS,
    PROMPT_TOKENS,
    RESPONSE_ID,
    SOUND,
    messages_stream,
    response,
    responses_stream,
    to_json,
)
from tests.fakes.upstream import Reply, Upstream, chunk
from tests.integration.gateway.harness import (
    KEY,
    OTHER_KEY,
    Answer,
    chat,
    key_record,
    request,
    route,
    standing,
    table,
    until,
)

STREAMS = {
    "/v1/responses": {"model": "m", "input": "hi"},
    "/v1/messages": {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
}
streamed = pytest.mark.parametrize("path", STREAMS)


def content_of(path: str, count: int) -> bytes:
    stream = responses_stream(count) if path == "/v1/responses" else messages_stream(count)
    return b"".join([*stream.first, *stream.content, *stream.last])


def sent(engine: Upstream) -> dict[str, Any]:
    """What the engine got, but for the name that the gateway gives to a response."""
    body = engine.requests[-1].body
    assert body.pop("request_id", "resp_").startswith("resp_")
    return body


@streamed
async def test_a_typed_stream_passes_byte_for_byte_and_is_metered(journal: Path, path: str) -> None:
    async with Upstream(Reply(events=5)) as engine, standing(journal, route(engine)) as stand:
        answer = await stand.post({**STREAMS[path], "stream": True}, path)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.body == content_of(path, 5)
        assert sent(engine) == {**STREAMS[path], "stream": True}
        record = await stand.one_record()
        assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (
            PROMPT_TOKENS,
            5,
            CACHED_TOKENS,
        )
        assert (record.source, record.outcome, record.path, record.stream) == ("engine", "done", path, True)
        assert record.first_token_seconds is not None


@streamed
async def test_a_whole_answer_passes_and_is_metered(journal: Path, path: str) -> None:
    async with Upstream(Reply(events=4)) as engine, standing(journal, route(engine, model="n")) as stand:
        answer = await stand.post(STREAMS[path], path)
        assert answer.json["model"] == "m"
        assert sent(engine) == {**STREAMS[path], "model": "n"}
        record = await stand.one_record()
        assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (
            PROMPT_TOKENS,
            4,
            CACHED_TOKENS,
        )
        assert record.source == "engine"


@streamed
@pytest.mark.parametrize("die", ["mid_stream", "mid_event", "mid_chunk", "no_done"])
async def test_a_cut_stream_ends_with_an_error_of_its_kind(journal: Path, path: str, die: str) -> None:
    async with Upstream(Reply(events=2, die=die)) as engine, standing(journal, route(engine)) as stand:
        answer = await stand.post({**STREAMS[path], "stream": True}, path)
        assert not answer.cut
        name, error = answer.typed[-1]
        assert name == error["type"] == "error"
        if path == "/v1/responses":
            assert error["code"] == error["error"]["code"] == "stream_broken"
            assert error["message"]
        else:
            assert error["error"]["type"] == "api_error"
            assert error["request_id"] == answer.headers["request-id"]
        assert [name for name, _ in answer.typed if name.endswith("delta")] != []
        record = await stand.one_record()
        assert (record.outcome, record.source, record.completion_tokens) == ("engine_failed", "counted", 2)


@streamed
async def test_a_stream_cut_anywhere_is_never_taken_for_whole(journal: Path, path: str) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    stream = responses_stream(1) if path == "/v1/responses" else messages_stream(1)
    framed = b"".join(map(chunk, [*stream.first, *stream.content, *stream.last])) + b"0\r\n\r\n"
    async with (
        Upstream() as engine,
        standing(journal, route(engine), upstream={"retry_burst": 0, "retry_share": 0}) as stand,
    ):
        for position in range(0, len(framed), 7):
            engine.reply = Reply(raw=[head + framed[:position]], close=True)
            answer = await stand.post({**STREAMS[path], "stream": True}, path)
            assert not answer.cut
            if answer.status == 200:
                assert answer.typed[-1][0] == "error"
            else:
                assert answer.status == 502
        engine.reply = Reply(raw=[head + framed])
        assert (await stand.post({**STREAMS[path], "stream": True}, path)).body == content_of(path, 1)
        assert {r.outcome for r in stand.records()[:-1]} == {"engine_failed"}
        assert stand.records()[-1].outcome == "done"


@streamed
async def test_who_leaves_is_charged_for_what_was_produced(journal: Path, path: str) -> None:
    async with Upstream(Reply(events=9, hold_after=3)) as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(request({**STREAMS[path], "stream": True}, path))
        while b"t2 " not in await raw.line():
            pass
        raw.abort()
        await engine.until("aborted", 1)
        record = await stand.one_record()
        assert (record.outcome, record.source, record.completion_tokens) == ("client_left", "counted", 3)
        # Messages tell with their beginning what the prompt took.
        assert record.prompt_tokens == (PROMPT_TOKENS if path == "/v1/messages" else 0)


@streamed
async def test_before_content_another_engine_is_tried(journal: Path, path: str) -> None:
    async with (
        Upstream(Reply(die="before_content")) as bad,
        Upstream() as good,
        standing(journal, route(bad, good)) as stand,
    ):
        while not bad.requests:  # which one is asked first is chance
            answer = await stand.post({**STREAMS[path], "stream": True}, path)
            assert answer.body == content_of(path, 3)
        assert {r.outcome for r in stand.records()} == {"done"}


async def test_silence_gets_comments_in_typed_streams(journal: Path) -> None:
    async with (
        Upstream(Reply(events=1, hold_after=0)) as engine,
        standing(journal, route(engine), upstream={"ping_seconds": 0.3}) as stand,
    ):
        raw = await stand.connect()
        raw.send(request({**STREAMS["/v1/messages"], "stream": True}, "/v1/messages"))
        while b": ping" not in await raw.line():
            pass
        engine.go.set()
        assert b"message_stop" in await raw.reader.readuntil(b"0\r\n\r\n")
        raw.close()


async def test_an_engine_that_does_not_stream_after_a_comment(journal: Path) -> None:
    whole = Reply(delay_seconds=1.0, body=b'{"choices":[],"usage":null}')
    async with (
        Upstream(whole) as engine,
        standing(journal, route(engine), upstream={"ping_seconds": 0.3}) as stand,
    ):
        named = await stand.post({**STREAMS["/v1/messages"], "stream": True}, "/v1/messages")
        assert [name for name, _ in named.typed] == ["error"]
        plain = await stand.post(chat(stream=True))
        assert plain.events == [{"choices": [], "usage": None}, "[DONE]"]


# Anthropic's shape.


async def test_errors_of_messages_are_in_anthropics_shape(journal: Path) -> None:
    messages = STREAMS["/v1/messages"]
    limited = [key_record(models=["other"]), key_record(OTHER_KEY)]
    async with (
        Upstream() as engine,
        standing(journal, route(engine), keys=limited, intake={"body_max_bytes": 2000}) as stand,
    ):

        async def post(body: Any, **headers: str) -> Answer:
            headers = {"authorization": "", "x_api_key": OTHER_KEY, **headers}
            return await stand.post(body, "/v1/messages", **headers)

        assert (await post(messages)).status == 200
        assert (await post(messages)).headers["request-id"].startswith("req_")
        answers = {
            (401, "authentication_error"): await post(messages, x_api_key="sk-wrong"),
            (403, "permission_error"): await post(messages, x_api_key=KEY),
            (404, "not_found_error"): await post({**messages, "model": "none"}),
            (400, "invalid_request_error"): await post(b"{"),
            (413, "request_too_large"): await post({**messages, "x": "y" * 3000}),
        }
        for (status, kind), answer in answers.items():
            assert (answer.status, answer.anthropic_error["type"]) == (status, kind)
            assert answer.anthropic_error["message"]
        wrong = await stand.get("/v1/messages")
        assert (wrong.status, wrong.anthropic_error["type"]) == (405, "invalid_request_error")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            b'{"type":"error","error":{"type":"BadRequestError","message":"no"}}',
            (400, "invalid_request_error"),
        ),
        (429, b"slow", (429, "rate_limit_error")),
        (503, b'{"error":{"message":"Loading model","code":503}}', (529, "overloaded_error")),
        (500, b"<html>", (500, "api_error")),
        (401, b"", (502, "api_error")),
        (501, b'{"error":{"code":501,"message":"no such thing"}}', (400, "invalid_request_error")),
    ],
)
async def test_engine_errors_in_anthropics_shape(
    journal: Path, status: int, body: bytes, expected: tuple[int, str]
) -> None:
    async with Upstream(Reply(status=status, body=body)) as engine, standing(journal, route(engine)) as stand:
        for stream in (False, True):
            answer = await stand.post({**STREAMS["/v1/messages"], "stream": stream}, "/v1/messages")
            assert (answer.status, answer.anthropic_error["type"]) == expected


async def test_a_full_queue_is_overload_for_anthropics_clients(journal: Path) -> None:
    async with (
        Upstream(Reply(events=1, hold_after=0)) as engine,
        standing(journal, route(engine, concurrency=1, queue_max=0)) as stand,
    ):
        raw = await stand.connect()
        raw.send(request(chat(stream=True)))
        await engine.until("requests", 1)
        answer = await stand.post(STREAMS["/v1/messages"], "/v1/messages")
        assert (answer.status, answer.anthropic_error["type"]) == (529, "overloaded_error")
        assert int(answer.headers["retry-after"]) > 0
        engine.go.set()
        raw.close()


async def test_a_late_engine_is_a_timeout_for_anthropics_clients(journal: Path) -> None:
    limits = TimeLimits(first_token_seconds=0.3)
    async with (
        Upstream(Reply(delay_seconds=30)) as engine,
        standing(journal, route(engine, limits=limits)) as stand,
    ):
        answer = await stand.post({**STREAMS["/v1/messages"], "stream": True}, "/v1/messages")
        assert (answer.status, answer.anthropic_error["type"]) == (504, "timeout_error")


async def test_models_as_anthropics_clients_want_them(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
        async with httpx.AsyncClient(base_url=stand.url, headers=headers) as client:
            listed = (await client.get("/v1/models")).json()
            assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "m", "m")
            model = listed["data"][0]
            assert (model["type"], model["display_name"], model["created_at"]) == (
                "model",
                "m",
                "1970-01-01T00:00:01Z",
            )
            missing = await client.get("/v1/models/none")
            assert missing.json()["error"]["type"] == "not_found_error"
            assert (await client.get("/v1/models/m")).json()["type"] == "model"


async def test_counting_tokens(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        answer = await stand.post(STREAMS["/v1/messages"], "/v1/messages/count_tokens")
        assert answer.json == {"input_tokens": PROMPT_TOKENS}
        record = await stand.one_record()
        assert (record.prompt_tokens, record.completion_tokens, record.outcome) == (0, 0, "done")
        here = await stand.post(STREAMS["/v1/responses"], "/v1/responses/input_tokens")
        assert (here.status, here.error["code"]) == (400, "endpoint_not_supported")


# Responses that are kept.


async def test_a_kept_response_is_asked_of_the_engine_that_has_it(journal: Path) -> None:
    async with (
        Upstream() as one,
        Upstream() as two,
        standing(journal, route(one, two), keys=[key_record(), key_record(OTHER_KEY, id=2)]) as stand,
    ):
        answer = await stand.post(STREAMS["/v1/responses"], "/v1/responses")
        keeper, other = (one, two) if one.requests else (two, one)
        path = f"/v1/responses/{answer.json['id']}"
        keeper.reply = Reply(body=to_json(response(3)))
        other.reply = Reply(status=404)
        for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/input_items?limit=2&order=asc")):
            assert (await stand.get(path + rest, method)).status == 200
            assert (keeper.requests[-1].method, keeper.requests[-1].path) == (method, path + rest)
            assert keeper.requests[-1].headers["authorization"].startswith("Bearer ")
            assert KEY not in str(keeper.requests[-1].headers)
        assert (await stand.post(b"", f"{path}/cancel")).status == 200
        assert keeper.requests[-1].path == f"{path}/cancel"
        # Going on with it needs the same engine.
        keeper.reply = Reply()
        for _ in range(6):
            more = {**STREAMS["/v1/responses"], "previous_response_id": answer.json["id"]}
            assert (await stand.post(more, "/v1/responses")).status == 200
        assert not other.requests
        # What it says of usage was counted when it was created.
        kept = [r for r in stand.records() if "{id}" in r.path]
        assert [r.prompt_tokens + r.completion_tokens for r in kept] == [0] * 4
        assert {r.outcome for r in kept} == {"done"}
        assert len({r.path for r in kept}) == 3
        for secret in (OTHER_KEY, "sk-wrong"):
            denied = await stand.get(path, key=secret)
            assert denied.status == (404 if secret == OTHER_KEY else 401)
        refused = await stand.post(
            {**STREAMS["/v1/responses"], "previous_response_id": answer.json["id"]},
            "/v1/responses",
            authorization=f"Bearer {OTHER_KEY}",
        )
        assert (refused.status, refused.error["code"]) == (404, "response_not_found")


async def test_a_streamed_response_is_kept_too_and_can_be_streamed_again(journal: Path) -> None:
    async with Upstream(Reply(events=3, hold_after=1)) as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(request({**STREAMS["/v1/responses"], "stream": True}, "/v1/responses"))
        while b"t0 " not in await raw.line():
            pass
        engine.go.set()
        path = f"/v1/responses/{RESPONSE_ID}"
        # While it is still coming.
        stream = responses_stream(2)
        again = b"".join(map(chunk, [*stream.first, *stream.content, *stream.last])) + b"0\r\n\r\n"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        engine.reply = Reply(raw=[head + again])
        answer = await stand.get(f"{path}?stream=true&starting_after=1")
        assert answer.typed[-1][0] == "response.completed"
        assert engine.requests[-1].path == f"{path}?stream=true&starting_after=1"
        raw.close()


async def test_responses_that_nobody_keeps(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        for path in ("/v1/responses/resp_1", "/v1/responses/resp_1/input_items"):
            answer = await stand.get(path)
            assert (answer.status, answer.error["code"]) == (404, "response_not_found")
        assert (await stand.post(b"{}", "/v1/responses/resp_1/cancel")).status == 404
        assert (await stand.get("/v1/responses/resp_1", "PUT")).headers["allow"] == "DELETE, GET"
        for path in ("/v1/responses/a/b/c", "/v1/responses/a%2Fb", "/v1/responses/" + "x" * 300):
            assert (await stand.get(path)).error["code"] == "unknown_url"
        assert not engine.requests
        created = await stand.post(STREAMS["/v1/responses"], "/v1/responses")
        stand.gateway.table.replace(table(route(), version=2))
        assert (await stand.get(f"/v1/responses/{created.json['id']}")).status == 404
        assert len(stand.gateway.owners) == 1


async def test_any_gateway_knows_where_a_response_of_vllm_is(journal: Path, tmp_path: Path) -> None:
    keys = [key_record(), key_record(OTHER_KEY, id=2)]
    async with Upstream() as one, Upstream() as two, Upstream() as three:
        routes = [route(three, name="n", engine="openai"), route(one, two)]
        async with standing(journal, *routes, keys=keys) as stand:
            assert (await stand.post(STREAMS["/v1/responses"], "/v1/responses")).status == 200
            keeper, other = (one, two) if one.requests else (two, one)
            name = keeper.requests[-1].body["request_id"]
            own = {**STREAMS["/v1/responses"], "request_id": "resp_mine"}
            await stand.post(own, "/v1/responses")
            assert "resp_mine" in [seen.body["request_id"] for seen in one.requests + two.requests]
        keeper.requests.clear()
        other.requests.clear()
        async with standing(tmp_path / "other", *routes, keys=keys) as elsewhere:
            path = f"/v1/responses/{name}"
            keeper.reply = Reply(body=to_json(response(1, name)))
            assert (await elsewhere.get(path)).json["id"] == name
            more = {**STREAMS["/v1/responses"], "previous_response_id": name}
            for _ in range(5):
                assert (await elsewhere.post(more, "/v1/responses")).status == 200
            assert not other.requests
            assert (await elsewhere.get(path, key=OTHER_KEY)).status == 404
            forged = path[:-1] + ("0" if path[-1] != "0" else "1")
            assert (await elsewhere.get(forged)).status == 404


async def test_what_is_remembered_is_bounded(journal: Path) -> None:
    async with (
        Upstream() as engine,
        standing(journal, route(engine), upstream={"responses_max": 2}) as stand,
    ):
        for number in range(4):
            engine.reply = Reply(body=to_json(response(1, f"resp_{number}")))
            await stand.post(STREAMS["/v1/responses"], "/v1/responses")
        assert len(stand.gateway.owners) == 2
        assert (await stand.get("/v1/responses/resp_0")).status == 404
        assert (await stand.get("/v1/responses/resp_3")).status == 200


# Rerank, score, tokenize.


@pytest.mark.parametrize("engine_kind", ["vllm", "llamacpp", "openai"])
async def test_rerank_in_every_spelling(journal: Path, engine_kind: str) -> None:
    body = {"model": "m", "query": "q", "documents": ["a", "b"]}
    async with Upstream() as engine, standing(journal, route(engine, engine=engine_kind)) as stand:
        for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/reranking", "/v1/reranking"):
            answer = await stand.post(body, path)
            assert [result["index"] for result in answer.json["results"]] == [0, 1]
            assert engine.requests[-1].path == (path if engine_kind == "openai" else "/v1/rerank")
            assert stand.records()[-1].path == path
        assert {(r.prompt_tokens, r.source) for r in stand.records()} == {(PROMPT_TOKENS, "engine")}


async def test_score_where_there_is_one(journal: Path) -> None:
    body = {"model": "m", "text_1": "q", "text_2": "a"}
    async with (
        Upstream() as engine,
        standing(journal, route(engine), route(engine, name="gguf", engine="llamacpp")) as stand,
    ):
        for path in ("/score", "/v1/score"):
            assert (await stand.post(body, path)).json["data"][0]["score"] == 0.5
            assert engine.requests[-1].path == "/v1/score"
            refused = await stand.post({**body, "model": "gguf"}, path)
            assert (refused.status, refused.error["code"]) == (400, "endpoint_not_supported")
            assert path in refused.error["message"]
        assert len(engine.requests) == 2


async def test_tokenize_has_one_shape(journal: Path) -> None:
    async with (
        Upstream() as engine,
        standing(
            journal, route(engine), route(engine, name="gguf", engine="llamacpp", context_length=50)
        ) as stand,
    ):

        async def ask(model: str, path: str = "/tokenize", **fields: Any) -> tuple[Any, dict[str, Any]]:
            answer = await stand.post({"model": model, **fields}, path)
            assert answer.status == 200, answer.body
            sent = dict(engine.requests[-1].body)
            del sent["model"]
            assert engine.requests[-1].path == path.removeprefix("/v1")
            return answer.json, sent

        shape = {"count": 2, "tokens": [104, 105], "token_strs": None}
        for model, length in (("m", 99), ("gguf", 50)):
            for path in ("/tokenize", "/v1/tokenize"):
                for name in ("prompt", "content"):
                    answer, sent = await ask(model, path, **{name: "hi"})
                    assert answer == {**shape, "max_model_len": length}
                    theirs = {"m": ("prompt", "add_special_tokens"), "gguf": ("content", "add_special")}[
                        model
                    ]
                    assert sent[theirs[0]] == "hi"
                    # Each spelling keeps its own default.
                    assert sent.get(theirs[1], name == "prompt") is (name == "prompt")
        answer, sent = await ask("gguf", prompt="hi", return_token_strs=True, add_special_tokens=False)
        assert answer["token_strs"] == ["h", "i"]
        assert sent == {"content": "hi", "with_pieces": True, "add_special": False}
        answer, sent = await ask("m", content="hi", with_pieces=False, add_special=True)
        assert sent == {"prompt": "hi", "return_token_strs": False, "add_special_tokens": True}
        messages = [{"role": "user", "content": "hi"}]
        assert (await ask("m", messages=messages))[1] == {"messages": messages}
        assert (await ask("m", "/v1/detokenize", tokens=[104, 105]))[0]["prompt"] == "hi"
        assert (await ask("gguf", "/detokenize", tokens=[104, 105]))[0] == {"prompt": "hi"}
        for fields, param in (({"messages": messages}, "messages"), ({}, "prompt")):
            refused = await stand.post({"model": "gguf", **fields}, "/tokenize")
            assert (refused.status, refused.error["param"]) == (400, param)


# Sound and pictures.


def _form(fields: dict[str, str], size: int = 100_000) -> tuple[bytes, str]:
    made = httpx.Request("POST", "http://x", data=fields, files={"file": ("a.wav", b"RIFF" * (size // 4))})
    return made.read(), made.headers["content-type"]


async def test_a_form_reaches_the_engine_as_it_came_but_for_the_model(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine, aliases=["whisper-1"])) as stand:
        body, kind = _form({"model": "m", "language": "de"})
        for path in ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits"):
            assert (await stand.post(body, path, content_type=kind)).status == 200
            sent = engine.requests[-1]
            assert (sent.path, sent.raw_body, sent.headers["content-type"]) == (path, body, kind)
        alias, kind = _form({"model": "whisper-1", "language": "de"})
        assert (await stand.post(alias, "/v1/audio/transcriptions", content_type=kind)).status == 200
        form = engine.requests[-1].form
        assert (form["model"], form["language"], len(form["file"])) == (b"m", b"de", 100_000)
        assert (await stand.post({"model": "m", "prompt": "x"}, "/v1/images/generations")).status == 200
        assert engine.requests[-1].headers["content-type"] == "application/json"
        nameless, kind = _form({"language": "de"})
        refused = await stand.post(nameless, "/v1/audio/transcriptions", content_type=kind)
        assert (refused.status, refused.error["param"]) == (400, "model")


async def test_a_key_for_some_models_cannot_name_two_in_a_form(journal: Path) -> None:
    async with (
        Upstream() as engine,
        standing(journal, route(engine), keys=[key_record(models=["m"])]) as stand,
    ):
        body, kind = _form({"model": "m"})
        assert (await stand.post(body, "/v1/audio/transcriptions", content_type=kind)).status == 200
        boundary = kind.partition("boundary=")[2].encode()
        end = b"--" + boundary + b"--"
        second = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\nn\r\n' % boundary
        twice = body.replace(end, second + end)
        refused = await stand.post(twice, "/v1/audio/transcriptions", content_type=kind)
        assert (refused.status, refused.error["param"]) == (400, "model")
        assert len(engine.requests) == 1


async def test_a_transcription_may_stream(journal: Path) -> None:
    async with Upstream(Reply(events=3)) as engine, standing(journal, route(engine)) as stand:
        body, kind = _form({"model": "m", "stream": "true"})
        answer = await stand.post(body, "/v1/audio/transcriptions", content_type=kind)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert [event["choices"][0]["delta"]["content"] for event in answer.events[:3]] == [
            "t0 ",
            "t1 ",
            "t2 ",
        ]
        record = await stand.one_record()
        assert (record.outcome, record.prompt_tokens, record.completion_tokens) == ("done", PROMPT_TOKENS, 3)


async def test_another_engine_may_answer_with_another_type(journal: Path) -> None:
    body, kind = _form({"model": "m", "stream": "true"})
    async with (
        Upstream(Reply(body=b"some text", kind="text/plain", die="after_head")) as bad,
        Upstream(Reply(events=2)) as good,
        standing(journal, route(bad, good)) as stand,
    ):
        while not bad.requests:
            answer = await stand.post(body, "/v1/audio/transcriptions", content_type=kind)
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.text == "t0 t1 "


async def test_text_and_sound_keep_their_type(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        speech = {"model": "m", "input": "hi", "voice": "x"}
        for headers in ({}, {"x-chunked": "1"}):
            engine.reply = Reply(headers=headers)
            answer = await stand.post(speech, "/v1/audio/speech")
            assert (answer.status, answer.headers["content-type"]) == (200, "audio/mpeg")
            assert answer.body == SOUND
            assert not answer.cut
        engine.reply = Reply(body=b"1\n00:00 --> 00:01\nhi\n", kind="application/x-subrip")
        body, kind = _form({"model": "m", "response_format": "srt"})
        answer = await stand.post(body, "/v1/audio/transcriptions", content_type=kind)
        assert (answer.headers["content-type"], answer.body) == ("application/x-subrip", engine.reply.body)
        assert [r.outcome for r in stand.records()] == ["done"] * 3
        # An error is JSON all the same.
        engine.reply = Reply(status=400, body=b"no such voice", kind="text/plain")
        answer = await stand.post(speech, "/v1/audio/speech")
        assert (answer.status, answer.error["message"]) == (400, "no such voice")


async def test_sound_that_breaks_off_is_cut_and_not_filled_with_words(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        for headers in ({}, {"x-chunked": "1"}):
            engine.reply = Reply(body=SOUND, kind="audio/mpeg", die="mid_body", headers=headers)
            raw = await stand.connect()
            raw.send(request({"model": "m", "input": "hi"}, "/v1/audio/speech"))
            answer = await raw.answer()
            assert (answer.status, answer.cut) == (200, True)
            assert SOUND.startswith(answer.body)
        await until(lambda: len(stand.records()) == 2)
        assert {r.outcome for r in stand.records()} == {"engine_failed"}


async def test_sound_is_not_collected_and_waits_for_a_slow_client(journal: Path) -> None:
    size = 64 * 2**20
    head = b"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ncontent-length: %d\r\n\r\n" % size
    piece = b"x" * 2**20
    async with (
        Upstream(Reply(raw=[head, *[piece] * 64])) as engine,
        standing(journal, route(engine), upstream={"response_max_bytes": 2**20}) as stand,
    ):
        raw = await stand.connect()
        raw.send(request({"model": "m", "input": "hi"}, "/v1/audio/speech"))
        await raw.reader.readuntil(b"\r\n\r\n")
        raw.pause()
        exchange = next(iter(stand.gateway._open))  # pyright: ignore[reportPrivateUsage] # to see it wait
        await until(lambda: exchange._paused)  # pyright: ignore[reportPrivateUsage]
        assert exchange._buffered == 0  # pyright: ignore[reportPrivateUsage]
        raw.resume()
        got = 0
        while True:
            length = int((await raw.reader.readuntil(b"\r\n"))[:-2], 16)
            got += length
            await raw.reader.readexactly(length + 2)
            if not length:
                break
        assert got == size
        raw.close()


async def test_paths_that_an_engine_lacks_are_told_in_one_way(journal: Path) -> None:
    async with (
        Upstream(Reply(status=404, body=b'{"detail":"Not Found"}')) as engine,
        standing(journal, route(engine), route(engine, name="gguf", engine="llamacpp")) as stand,
    ):
        for path in ("/v1/classify", "/pooling", "/v1/embeddings", "/v1/audio/speech"):
            answer = await stand.post({"model": "m", "input": "x"}, path)
            assert (answer.status, answer.error["code"]) == (400, "endpoint_not_supported")
            assert path in answer.error["message"]
        seen = len(engine.requests)
        for path in ("/v1/moderations", "/v1/images/generations", "/v1/audio/speech", "/v1/pooling"):
            answer = await stand.post({"model": "gguf", "input": "x"}, path)
            assert (answer.status, answer.error["code"]) == (400, "endpoint_not_supported")
        assert len(engine.requests) == seen
        for path in ("/v1/files", "/v1/batches", "/health2", "/v1/lora", "/reset_prefix_cache"):
            assert (await stand.post({"model": "m"}, path)).error["code"] == "unknown_url"


async def test_infill_goes_to_llamacpp(journal: Path) -> None:
    async with (
        Upstream(Reply(events=2)) as engine,
        standing(journal, route(engine, engine="llamacpp")) as stand,
    ):
        answer = await stand.post({"model": "m", "input_prefix": "a", "input_suffix": "b"}, "/infill")
        assert answer.json["content"] == "x"
        record = await stand.one_record()
        assert (record.prompt_tokens, record.completion_tokens) == (PROMPT_TOKENS, 2)


# Dialects.


async def test_parameters_reach_each_engine_in_its_words(journal: Path) -> None:
    async with (
        Upstream() as engine,
        standing(
            journal,
            route(engine),
            route(engine, name="gguf", engine="llamacpp"),
            route(engine, name="strict", strict=True),
            route(engine, name="defaults", defaults={"temperature": 0.5, "repeat_penalty": 1.2}),
        ) as stand,
    ):
        plain = await stand.post(chat(repeat_penalty=1.1, n_predict=5))
        assert "x-cortex-ignored" not in plain.headers
        assert engine.requests[-1].body == chat(repetition_penalty=1.1, max_tokens=5)
        for stream in (False, True):
            named = await stand.post(chat(mirostat=2, samplers=["top_k"], stream=stream))
            assert named.status == 200
            assert named.headers["x-cortex-ignored"] == "mirostat, samplers"
            assert "mirostat" not in engine.requests[-1].body
        assert engine.requests[-1].body["stream_options"] == {"include_usage": True}
        await stand.post({**chat(repetition_penalty=1.1), "model": "gguf"})
        assert engine.requests[-1].body == {**chat(repeat_penalty=1.1), "model": "gguf"}
        seen = len(engine.requests)
        refused = await stand.post({**chat(timings_per_token=True), "model": "strict"})
        assert (refused.status, refused.error["param"]) == (400, "timings_per_token")
        assert len(engine.requests) == seen
        await stand.post({**chat(temperature=1), "model": "defaults"})
        assert engine.requests[-1].body == {
            **chat(temperature=1, repetition_penalty=1.2),
            "model": "defaults",
        }
        for path, body in STREAMS.items():
            await stand.post({**body, "model": "defaults"}, path)
            assert engine.requests[-1].body["temperature"] == 0.5


async def test_usage_on_every_event_only_for_those_who_ask(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        options = {"include_usage": True, "continuous_usage_stats": True}
        await stand.post(chat(stream=True, stream_options=options))
        assert engine.requests[-1].body["stream_options"] == options
        await stand.post(chat(stream=True, stream_options={"continuous_usage_stats": True}))
        assert engine.requests[-1].body["stream_options"] == {"include_usage": True}


async def test_what_an_engine_gave_up_has_not_finished(journal: Path) -> None:
    aborted = b'{"choices":[{"index":0,"message":{"content":""},"finish_reason":"abort"}],"usage":null}'
    event = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    said = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        engine.reply = Reply(body=aborted)
        assert (await stand.post(chat())).status == 502
        engine.reply = Reply(raw=[head + chunk(event) + b"0\r\n\r\n"])
        assert (await stand.post(chat(stream=True))).status == 500
        engine.reply = Reply(raw=[head + chunk(said) + chunk(event) + b"0\r\n\r\n"])
        late = await stand.post(chat(stream=True))
        assert late.text == "a"
        assert "error" in late.events[-1]
        assert [r.outcome for r in stand.records()] == ["engine_failed"] * 3


async def test_errors_in_a_stream_take_the_one_shape(journal: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    said = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    error = b'data: {"error":{"code":500,"message":"boom","type":"server_error"}}\n\ndata: [DONE]\n\n'
    async with (
        Upstream(Reply(raw=[head + chunk(said) + chunk(error) + b"0\r\n\r\n"])) as engine,
        standing(journal, route(engine)) as stand,
    ):
        answer = await stand.post(chat(stream=True))
        assert answer.events[-1] == {
            "error": {"message": "boom", "type": "server_error", "param": None, "code": None}
        }


# Browsers.


async def test_cors_for_the_origins_that_are_listed(journal: Path) -> None:
    good, bad = "https://chat.example.org", "https://evil.example.org"
    async with (
        Upstream() as engine,
        standing(journal, route(engine), http={"drain_seconds": 1, "cors_origins": [good]}) as stand,
    ):
        for path in ("/v1/chat/completions", "/v1/responses/resp_1", "/v1/models"):
            raw = await stand.connect()
            raw.send(
                f"OPTIONS {path} HTTP/1.1\r\nhost: x\r\norigin: {good}\r\n"
                "access-control-request-method: POST\r\n"
                "access-control-request-headers: authorization, content-type\r\n\r\n".encode()
            )
            answer = await raw.answer()
            raw.close()
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, good)
            assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
            assert "OPTIONS" in answer.headers["access-control-allow-methods"]
        for stream in (False, True):
            allowed = await stand.post(chat(stream=stream), origin=good)
            assert allowed.headers["access-control-allow-origin"] == good
            exposed = allowed.headers["access-control-expose-headers"]
            for name in ("x-request-id", "retry-after", "x-ratelimit-remaining-tokens"):
                assert name in exposed
            denied = await stand.post(chat(stream=stream), origin=bad)
            assert "access-control-allow-origin" not in denied.headers
            assert denied.headers["vary"] == "origin"
        refused = await stand.post(chat(), origin=good, authorization="")
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, good)
        async with httpx.AsyncClient(base_url=stand.url) as client:
            listed = await client.get("/v1/models", headers={"origin": good, "x-api-key": KEY})
            assert listed.headers["access-control-allow-origin"] == good
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        off = await stand.post(chat(), origin=good)
        assert not [name for name in off.headers if name.startswith("access-control") or name == "vary"]


async def test_requests_of_all_kinds_on_one_connection(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        created = request(STREAMS["/v1/responses"], "/v1/responses")
        get = f"GET /v1/responses/{RESPONSE_ID} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n".encode()
        body, kind = _form({"model": "m"})
        raw.send(created)
        assert (await raw.answer()).status == 200
        raw.send(get + request(body, "/v1/audio/transcriptions", content_type=kind) + get + request(chat()))
        assert (await raw.answer()).status == 200
        assert (await raw.answer()).json["text"]
        assert (await raw.answer()).status == 200
        assert (await raw.answer()).json["choices"]
        raw.close()
