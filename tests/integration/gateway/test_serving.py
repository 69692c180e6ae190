"""What a well-behaved client gets: answers, streams, models, errors in the right shape."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cortex_shared.contracts.routes import TimeLimits
from cortex_shared.engine_keys import engine_key

from tests.fakes.upstream import DONE, FINISH, PROMPT_TOKENS, ROLE, Reply, Upstream, chunk, event, usage_event
from tests.integration.gateway.harness import (
    KEY,
    OTHER_KEY,
    SECRET,
    chat,
    key_record,
    request,
    route,
    standing,
    until,
)


async def test_a_chat_answer_passes_byte_for_byte(journal: Path) -> None:
    body = b'{"id":"1",  "odd" : [1,2], "choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'
    async with Upstream(Reply(body=body)) as engine, standing(journal, route(engine)) as stand:
        answer = await stand.post(chat(extra={"kept": [1]}, top_k=5))
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"].startswith("req_")
        assert engine.requests[0].body == chat(extra={"kept": [1]}, top_k=5)
        record = await stand.one_record()
        assert (record.prompt_tokens, record.completion_tokens) == (3, 4)
        assert (record.source, record.outcome, record.status) == ("engine", "done", 200)
        assert (record.key_id, record.key_name, record.instance) == (1, "test", "i0")


async def test_a_chunked_answer_becomes_one_with_a_length(journal: Path) -> None:
    async with (
        Upstream(Reply(headers={"x-chunked": "1"})) as engine,
        standing(journal, route(engine)) as stand,
    ):
        answer = await stand.post(chat())
        assert answer.json["choices"][0]["message"]["content"] == "t0 t1 t2 "
        assert "content-length" in answer.headers


async def test_a_stream_passes_and_the_usage_event_is_withheld_unless_asked_for(journal: Path) -> None:
    async with Upstream(Reply(events=5)) as engine, standing(journal, route(engine)) as stand:
        answer = await stand.post(chat(stream=True))
        assert answer.headers["content-type"].startswith("text/event-stream")
        expected = ROLE + b"".join(event(f"t{n} ") for n in range(5)) + FINISH + DONE
        assert answer.body == expected
        assert engine.requests[0].body["stream_options"] == {"include_usage": True}
        asked = await stand.post(chat(stream=True, stream_options={"include_usage": True}))
        assert asked.body == expected[: -len(DONE)] + usage_event(PROMPT_TOKENS, 5) + DONE
        kept = await stand.post(chat(stream=True, stream_options={"include_usage": False, "x": 1}))
        assert kept.body == expected
        assert engine.requests[2].body["stream_options"] == {"include_usage": True, "x": 1}
        records = stand.records()
        assert [(r.completion_tokens, r.prompt_tokens, r.cached_tokens, r.source) for r in records] == [
            (5, PROMPT_TOKENS, 2, "engine")
        ] * 3
        assert all(r.first_token_seconds is not None and r.stream for r in records)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
async def test_a_stream_is_the_same_however_its_bytes_arrive(journal: Path, size: int) -> None:
    events = [ROLE, *(event(f'é "error" {n}\n') for n in range(4)), FINISH, DONE]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    framed = head + b"".join(chunk(e) for e in events) + b"0\r\n\r\n"
    if size < 50:
        framed = head + chunk(b"".join(events)) + b"0\r\n\r\n"
    pieces = [framed[n : n + size * 40] for n in range(0, len(framed), size * 40)]
    async with Upstream(Reply(raw=pieces)) as engine, standing(journal, route(engine)) as stand:
        answer = await stand.post(chat(stream=True))
        assert answer.body == b"".join(events)
        assert not answer.cut


async def test_a_stream_until_close_is_framed(journal: Path) -> None:
    async with Upstream(Reply(chunked=False)) as engine, standing(journal, route(engine)) as stand:
        answer = await stand.post(chat(stream=True))
        assert answer.text == "t0 t1 t2 "
        assert answer.events[-1] == "[DONE]"
        assert not answer.cut


async def test_an_http_1_0_client_gets_a_stream_without_chunks(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(request(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await raw.answer()
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert answer.text == "t0 t1 t2 "


async def test_events_reach_the_client_as_they_happen(journal: Path) -> None:
    async with Upstream(Reply(events=2, hold_after=1)) as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(request(chat(stream=True)))
        while b"t0 " not in await raw.line():
            pass
        assert engine.sent_events == 1
        engine.go.set()
        while b"t1 " not in await raw.line():
            pass
        raw.close()


async def test_the_engine_gets_its_own_key_and_no_secret_of_the_client(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await stand.post(
            chat(), traceparent=parent, x_custom="1", cookie="a=b", connection="x-hop", x_hop="1"
        )
        seen = engine.requests[0].headers
        assert seen["authorization"] == f"Bearer {engine_key(SECRET, 'i0')}"
        assert seen["traceparent"] == parent
        assert seen["x-custom"] == "1"
        assert not {"cookie", "x-hop", "connection"} & set(seen)
        assert KEY not in str(seen)


async def test_an_external_engine_gets_the_key_and_model_of_its_route(journal: Path) -> None:
    async with Upstream() as engine:
        wanted = route(f"{engine.url}/base/v1", key="theirs", model='o"ther', aliases=["alias"])
        async with standing(journal, wanted) as stand:
            nested = chat(metadata={"model": "m"}, tools=[{"model": "m"}])
            assert (await stand.post({**nested, "model": "alias"})).status == 200
            assert engine.requests[0].headers["authorization"] == "Bearer theirs"
            assert engine.requests[0].path == "/base/v1/chat/completions"
            assert engine.requests[0].body == {**nested, "model": 'o"ther'}


async def test_keys(journal: Path) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    keys = [
        key_record(models=["m"]),
        key_record("sk-expired", expires_at=past),
        key_record("sk-elsewhere", networks=["10.0.0.0/8"]),
        key_record("sk-here", networks=["127.0.0.0/8"]),
    ]
    async with (
        Upstream() as engine,
        standing(journal, route(engine), route(engine, name="n"), keys=keys) as stand,
    ):
        for name in ("authorization", "x_api_key", "api_key"):
            prefix = "bEARER " if name == "authorization" else ""
            headers = {"authorization": "", name: f"{prefix}{KEY}"}
            assert (await stand.post(chat(), **headers)).status == 200
        for secret in ("", "Bearer sk-wrong", f"Basic {KEY}", "Bearer sk-expired", "Bearer"):
            answer = await stand.post(chat(), authorization=secret)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert (await stand.post(chat(), authorization="Bearer sk-elsewhere")).status == 403
        assert (await stand.post(chat(), authorization="Bearer sk-here")).status == 200
        denied = await stand.post({**chat(), "model": "n"})
        assert (denied.status, denied.error["param"]) == (403, "model")
        twice = b'{"model":"n","messages":[],"model":"m"}'
        assert (await stand.post(twice)).status == 400
        assert [m["id"] for m in (await stand.get("/v1/models")).json["data"]] == ["m"]
        assert (await stand.get("/v1/models/n")).status == 404
        assert (await stand.get("/v1/models", key=None)).status == 401
        seen = len(engine.requests)
        stand.gateway.keys.replace([key_record(OTHER_KEY)])
        assert (await stand.post(chat())).status == 401
        assert len(engine.requests) == seen


async def test_before_the_first_ring_nobody_is_told_that_a_key_is_wrong(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        stand.gateway.keys.loaded = False
        answer = await stand.post(chat())
        assert (answer.status, answer.error["code"]) == (503, "gateway_starting")
        assert answer.headers["retry-after"] == "1"
        ready = await stand.get("/readyz")
        assert ready.status == 503
        assert (await stand.get("/livez")).status == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"", None),
        (b"[]", None),
        (b'"text"', None),
        (b'{"messages":[]}', "model"),
        (b'{"model":5}', "model"),
        (b'{"model":""}', "model"),
        (b'{"model":"m","stream":"yes"}', "stream"),
        (b'{"model":"m","stream_options":[]}', "stream_options"),
        (b'{"model":"m","max_tokens":"5"}', "max_tokens"),
        (b'{"model":"m"} {}', None),
        (b'{"model":"m","x":' + b"[" * 9000 + b"]" * 9000 + b"}", None),
    ],
)
async def test_a_bad_body_is_told_and_the_connection_stays(
    journal: Path, body: bytes, param: str | None
) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        for _ in range(2):
            raw.send(request(body))
            answer = await raw.answer()
            assert answer.status == 400
            assert (answer.error["type"], answer.error["param"]) == ("invalid_request_error", param)
        raw.send(request(chat()))
        assert (await raw.answer()).status == 200
        raw.close()
        assert len(engine.requests) == 1


async def test_unknown_and_unready_models(journal: Path) -> None:
    async with standing(journal, route(name="cold", state="loading")) as stand:
        unknown = await stand.post(chat())
        assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
        cold = await stand.post({**chat(), "model": "cold"})
        assert (cold.status, cold.error["code"]) == (503, "model_not_ready")
        assert "loading" in cold.error["message"]
        assert 0 < int(cold.headers["retry-after"]) <= 60
        record = await stand.one_record()
        assert (record.outcome, record.status) == ("rejected", 503)


async def test_other_paths_and_methods_are_refused_in_the_same_shape(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        unknown = await stand.get("/v1/nothing")
        assert (unknown.status, unknown.error["code"]) == (404, "unknown_url")
        for method in ("GET", "PUT", "DELETE"):
            wrong = await stand.get("/v1/chat/completions", method)
            assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
            assert wrong.error["type"] == "invalid_request_error"
        options = await stand.get("/v1/chat/completions", "OPTIONS", key=None)
        assert (options.status, options.headers["allow"], options.body) == (204, "POST, OPTIONS", b"")
        assert not [name for name in options.headers if name.startswith("access-control")]
        posted = await stand.post(b"{}", "/v1/models")
        assert (posted.status, posted.headers["allow"]) == (405, "GET, HEAD")
        head = await stand.get("/v1/chat/completions", "HEAD")
        assert (head.status, head.body) == (405, b"")
        assert (await stand.post(chat(), "/v1/chat/completions?a=b")).status == 200
        assert (await stand.post(chat(), "/v1/chat%2Fcompletions")).status == 200


async def test_models(journal: Path) -> None:
    async with Upstream() as engine:
        wanted = route(engine, name="org/name", aliases=["short"])
        async with standing(journal, wanted) as stand:
            listed = (await stand.get("/v1/models")).json
            assert listed["object"] == "list"
            model = listed["data"][0]
            assert (model["id"], model["object"], model["created"], model["owned_by"]) == (
                "org/name",
                "model",
                1,
                "cortex",
            )
            assert (await stand.get("/v1/models/org%2Fname")).json["id"] == "org/name"
            assert (await stand.get("/v1/models/short")).json["id"] == "short"
            missing = await stand.get("/v1/models/none")
            assert (missing.status, missing.error["code"]) == (404, "model_not_found")


async def test_request_ids(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        own = await stand.post(chat(), x_request_id="mine-1")
        assert own.headers["x-request-id"] == "mine-1"
        # The record and the engine have an id of the gateway's own, which no client can repeat.
        record = await stand.one_record()
        assert record.request_id.startswith("req_")
        assert engine.requests[0].headers["x-request-id"] == record.request_id
        odd = await stand.post(chat(), x_request_id="a b;<c>")
        assert odd.headers["x-request-id"].startswith("req_")
        assert (await stand.get("/v1/models")).headers["x-request-id"]


async def test_a_stalled_engine_is_given_up(journal: Path) -> None:
    limits = TimeLimits(first_token_seconds=0.3, idle_seconds=0.3)
    async with (
        Upstream(Reply(delay_seconds=30)) as engine,
        standing(journal, route(engine, limits=limits)) as stand,
    ):
        late = await stand.post(chat(stream=True))
        assert (late.status, late.error["code"]) == (504, "engine_timeout")
        await engine.until("aborted", 1)
        engine.reply = Reply(events=3, hold_after=2)
        broken = await stand.post(chat(stream=True))
        assert broken.status == 200
        assert broken.text == "t0 t1 "
        assert broken.events[-1]["error"]["code"] == "engine_timeout"
        assert not broken.cut
        await engine.until("aborted", 2)
        await until(lambda: len(stand.records()) == 2)
        assert [r.outcome for r in stand.records()] == ["engine_failed"] * 2
        assert stand.records()[1].completion_tokens == 2


async def test_the_whole_answer_has_a_limit(journal: Path) -> None:
    async with (
        Upstream(Reply(events=100000, interval_seconds=0.01)) as engine,
        standing(journal, route(engine, limits=TimeLimits(total_seconds=0.5))) as stand,
    ):
        answer = await stand.post(chat(stream=True))
        assert answer.events[-1]["error"]["code"] == "engine_timeout"
        whole = await asyncio.wait_for(stand.post(chat(stream=True)), 5)
        assert not whole.cut


async def test_silence_is_filled_with_comments(journal: Path) -> None:
    async with (
        Upstream(Reply(events=2, hold_after=0)) as engine,
        standing(journal, route(engine), upstream={"ping_seconds": 0.3}) as stand,
    ):
        raw = await stand.connect()
        raw.send(request(chat(stream=True)))
        while b": ping" not in await raw.line():
            pass
        engine.go.set()
        rest = await raw.reader.readuntil(b"0\r\n\r\n")
        assert rest.index(b"assistant") < rest.index(b"t0 ")
        raw.close()


async def test_an_engine_that_fails_after_a_comment_is_told_in_the_stream(journal: Path) -> None:
    async with (
        Upstream(Reply(delay_seconds=1.0, status=500)) as engine,
        standing(journal, route(engine), upstream={"ping_seconds": 0.3}) as stand,
    ):
        answer = await stand.post(chat(stream=True))
        assert answer.status == 200
        assert answer.events[-1]["error"]["message"] == "told to fail"
        assert not answer.cut


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error":{"code":400,"message":"no","type":"invalid_request_error"}}', (400, None)),
        (
            400,
            b'{"object":"error","message":"no","type":"BadRequestError","param":null,"code":400}',
            (400, None),
        ),
        (
            400,
            b'{"error":{"code":400,"message":"x","type":"exceed_context_size_error","n_ctx":5}}',
            (400, "context_length_exceeded"),
        ),
        (
            400,
            b'{"error":{"message":"This model\'s maximum context length is 8"}}',
            (400, "context_length_exceeded"),
        ),
        (422, b'{"detail":[{"msg":"bad"}]}', (422, None)),
        (404, b"Not here", (404, None)),
        (401, b'{"error":"Unauthorized"}', (502, "engine_refused")),
        (500, b"<html>", (500, None)),
        (
            503,
            b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}',
            (503, "server_is_overloaded"),
        ),
        (429, b"slow down", (429, "rate_limit_exceeded")),
        (302, b"", (502, None)),
    ],
)
async def test_engine_errors_take_the_one_shape(
    journal: Path, status: int, body: bytes, expected: tuple[int, str | None]
) -> None:
    async with Upstream(Reply(status=status, body=body)) as engine, standing(journal, route(engine)) as stand:
        for stream in (False, True):
            answer = await stand.post(chat(stream=stream))
            assert (answer.status, answer.error["code"]) == expected
            assert answer.error["message"]
        assert json.loads(answer.body)["error"]["type"] == answer.error["type"]
