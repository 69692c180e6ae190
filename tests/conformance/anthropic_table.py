"""What users of Anthropic's libraries get: every endpoint that is served, and every class of error."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cortex_llamacpp.tiny import STORY

from tests.conformance.openai_answers import answered, streamed
from tests.conformance.scenario import BODY_MAX_BYTES, OTHER_MODEL, QUESTION, Call, Ran, Refusal, Table
from tests.fakes.surfaces import CACHED_TOKENS, PROMPT_TOKENS, message, named
from tests.fakes.upstream import Reply

TABLE = Table("anthropic")
_WORDS = "t0 t1 t2 "


def ask(**fields: Any) -> Call:
    """A message."""
    return Call(
        "messages.create", fields={"model": "$MODEL", "max_tokens": 9, "messages": QUESTION, **fields}
    )


def _own_id(ran: Ran) -> None:
    assert ran.outcome.request_id == ran.outcome.headers["request-id"] == ran.outcome.headers["x-request-id"]


# Answers.


@TABLE(ask(system="Be brief.", stop_sequences=["x"]))
def messages_plain(ran: Ran) -> None:
    assert ran.value["content"] == [{"type": "text", "text": _WORDS}]
    assert (ran.value["role"], ran.value["stop_reason"]) == ("assistant", "end_turn")
    usage = ran.value["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (PROMPT_TOKENS - CACHED_TOKENS, 3)
    assert (ran.body["system"], ran.body["stop_sequences"]) == ("Be brief.", ["x"])
    _own_id(ran)


@TABLE(ask(stream=True))
def messages_stream_events(ran: Ran) -> None:
    kinds = [each["type"] for each in ran.events]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert kinds.count("content_block_delta") == 3
    assert ran.outcome.text == _WORDS
    assert ran.events[-2]["usage"]["output_tokens"] == 3


@TABLE(replace(ask(), method="messages.stream"))
def messages_stream_put_together(ran: Ran) -> None:
    assert ran.value["content"][0]["text"] == _WORDS
    assert ran.value["stop_reason"] == "end_turn"
    assert ran.value["usage"]["output_tokens"] == 3


_TOOLS: list[Any] = [
    {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
]
_USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}}


@TABLE(
    ask(tools=_TOOLS, tool_choice={"type": "auto"}),
    reply=answered({**message(3), "content": [_USE], "stop_reason": "tool_use"}),
)
def messages_tools(ran: Ran) -> None:
    assert ran.value["stop_reason"] == "tool_use"
    assert ran.value["content"] == [_USE]
    assert ran.body["tools"] == _TOOLS


_BEGUN = named("message_start", message={**message(0), "content": [], "stop_reason": None})


def _json_delta(text: str) -> bytes:
    return named("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": text})


@TABLE(
    replace(ask(tools=_TOOLS), method="messages.stream"),
    reply=streamed(
        _BEGUN,
        named("content_block_start", index=0, content_block={**_USE, "input": {}}),
        _json_delta('{"city": "K'),
        named("ping"),
        _json_delta('öln"}'),
        named("content_block_stop", index=0),
        named(
            "message_delta",
            delta={"stop_reason": "tool_use", "stop_sequence": None},
            usage={"output_tokens": 9},
        ),
        named("message_stop"),
    ),
)
def messages_stream_tools(ran: Ran) -> None:
    assert ran.value["content"][0]["input"] == {"city": "Köln"}
    assert (ran.value["stop_reason"], ran.value["usage"]["output_tokens"]) == ("tool_use", 9)


@TABLE(Call("messages.count_tokens", fields={"model": "$MODEL", "messages": QUESTION}))
def count_tokens(ran: Ran) -> None:
    assert ran.value["input_tokens"] == PROMPT_TOKENS


@TABLE(Call("models.list"))
def models_list(ran: Ran) -> None:
    (model,) = ran.value
    assert (model["id"], model["type"], model["display_name"]) == (ran.model, "model", ran.model)
    assert model["created_at"].startswith("20")


@TABLE(Call("models.retrieve", ("$MODEL",)))
def models_retrieve(ran: Ran) -> None:
    assert (ran.value["id"], ran.value["type"]) == (ran.model, "model")


@TABLE(ask(), engines=2, replies=(Reply(die="at_once"),))
def an_engine_that_dies_before_it_answers_is_not_seen(ran: Ran) -> None:
    assert ran.value["content"][0]["text"] == _WORDS
    assert (ran.outcome.attempts, ran.asked) == (1, 2)


@TABLE(ask(stream=True), engines=2, replies=(Reply(die="before_content"),))
def a_stream_that_dies_before_content_is_not_seen(ran: Ran) -> None:
    assert ran.outcome.text == _WORDS
    assert [each["type"] for each in ran.events].count("message_start") == 1
    assert (ran.outcome.attempts, ran.asked) == (1, 2)


@TABLE(replace(ask(), retries=1), replies=(Reply(status=429),))
def a_library_waits_as_told_and_gets_through(ran: Ran) -> None:
    assert ran.value["content"][0]["text"] == _WORDS
    assert (ran.outcome.attempts, ran.asked) == (2, 2)
    # 2 s is what the gateway says; of itself no library waits longer than 0.5 s after a first refusal.
    assert ran.outcome.seconds >= 2


@TABLE(replace(ask(stream=True), leave_after=4), reply=Reply(hold_after=3, events=5))
def a_user_who_leaves_a_stream_frees_the_engine(ran: Ran) -> None:
    assert len(ran.events) == 4
    assert ran.aborted()


@TABLE(replace(ask(stream=True), timeout_seconds=0.5), reply=Reply(delay_seconds=60))
def a_library_gives_up_before_the_first_event(ran: Ran) -> None:
    Refusal("APITimeoutError", None, says="timed out")(ran)
    assert ran.aborted()


# Of a real llama.cpp server, which tells STORY.

_SHORT: dict[str, Any] = {"max_tokens": 6, "extra_body": {"temperature": 0}}


@TABLE(ask(**_SHORT), served="story")
def real_messages(ran: Ran) -> None:
    assert ran.value["content"][0]["text"].split() == STORY.split()[:6]
    assert (ran.value["stop_reason"], ran.value["usage"]["output_tokens"]) == ("max_tokens", 6)
    _own_id(ran)


@TABLE(replace(ask(**_SHORT), method="messages.stream"), served="story")
def real_messages_stream(ran: Ran) -> None:
    assert ran.value["content"][0]["text"].split() == STORY.split()[:6]
    assert (ran.value["stop_reason"], ran.value["usage"]["output_tokens"]) == ("max_tokens", 6)


@TABLE(
    ask(**_SHORT),
    Call("messages.count_tokens", fields={"model": "$MODEL", "messages": QUESTION}),
    served="story",
)
def real_count_tokens(ran: Ran) -> None:
    usage = ran.outcomes[0].value["usage"]
    assert ran.value["input_tokens"] == usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)


# Refusals.

_KINDS = {
    400: ("BadRequestError", "invalid_request_error"),
    401: ("AuthenticationError", "authentication_error"),
    403: ("PermissionDeniedError", "permission_error"),
    404: ("NotFoundError", "not_found_error"),
    405: ("APIStatusError", "invalid_request_error"),
    413: ("ContentTooLargeError", "request_too_large"),
    429: ("RateLimitError", "rate_limit_error"),
    500: ("InternalServerError", "api_error"),
    502: ("InternalServerError", "api_error"),
    503: ("ServiceUnavailableError", "api_error"),
    504: ("GatewayTimeoutError", "timeout_error"),
    529: ("OverloadedError", "overloaded_error"),
}


def _refused(status: int, says: str, retry_after: str | None = None, attempts: int = 1) -> Refusal:
    kind, type = _KINDS[status]
    return Refusal(kind, status, None, type, says=says, retry_after=retry_after, attempts=attempts)


for name, call in {
    "messages": ask(),
    "stream": ask(stream=True),
    "count": Call("messages.count_tokens", fields={"model": "$MODEL", "messages": QUESTION}),
    "models": Call("models.list"),
}.items():
    TABLE.refused(f"wrong-key-{name}", replace(call, key="sk-wrong"), by=_refused(401, "not valid"))
    TABLE.refused(
        f"no-key-{name}",
        replace(call, headers={"X-Api-Key": None, "Authorization": None}),
        by=_refused(401, "No API key was given"),
    )
TABLE.refused("key-for-other-models", ask(), by=_refused(403, "may not use"), key={"models": [OTHER_MODEL]})
TABLE.refused("unknown-model", ask(model="nobody"), by=_refused(404, "'nobody' does not exist"))
TABLE.refused("unknown-model-stream", ask(model="nobody", stream=True), by=_refused(404, "does not exist"))
TABLE.refused(
    "unknown-model-retrieve", Call("models.retrieve", ("nobody",)), by=_refused(404, "does not exist")
)
TABLE.refused("unknown-path-batches", Call("messages.batches.list"), by=_refused(404, "Unknown path"))
TABLE.refused(
    "wrong-method", Call("get", ("/v1/messages",)), by=_refused(405, "GET is not possible here, POST is")
)
TABLE.refused("malformed-max-tokens", ask(max_tokens="many"), by=_refused(400, "`max_tokens`"))
TABLE.refused("malformed-empty-model", ask(model=""), by=_refused(400, "empty"))
TABLE.refused(
    "too-large",
    ask(messages=[{"role": "user", "content": "x" * (2 * BODY_MAX_BYTES)}]),
    by=_refused(413, f"larger than {BODY_MAX_BYTES} bytes"),
)
_CONTEXT = "This model's maximum context length is 4096 tokens."
TABLE.refused(
    "context-too-long",
    ask(),
    by=_refused(400, _CONTEXT),
    reply=Reply(status=400, body=json.dumps({"error": {"message": _CONTEXT, "code": 400}}).encode()),
)
for status, shown, retry_after in ((429, 429, "2"), (500, 500, None), (502, 502, None), (503, 529, "2")):
    for form, call in {"": ask(), "-stream": ask(stream=True)}.items():
        TABLE.refused(
            f"engine-says-{status}{form}",
            call,
            by=_refused(shown, "told to fail", retry_after),
            reply=Reply(status=status),
        )
TABLE.refused(
    "rate-limited",
    replace(ask(), retries=1),
    by=_refused(429, "1 requests under way", "1", attempts=2),
    held=True,
    key={"concurrency": 1},
)
TABLE.refused(
    "budget-is-spent",
    replace(ask(), retries=2),
    by=_refused(429, "has used its 5 tokens"),
    spent=True,
    key={"tokens_per_day": 5},
)
TABLE.refused(
    "queue-full",
    ask(),
    by=_refused(529, "queue is full", "2"),
    held=True,
    route={"concurrency": 1, "queue_max": 0},
)
TABLE.refused("engine-not-there", ask(), by=_refused(502, "could not be reached", "2"), served="nowhere")
TABLE.refused("model-without-engine", ask(), by=_refused(503, "it is loading", "10"), served="without")
TABLE.refused("engine-dies", ask(), by=_refused(502, "broke off", "2"), reply=Reply(die="mid_body"))
TABLE.refused(
    "time-limit",
    replace(ask(), retries=2),
    by=_refused(504, "took too long"),
    reply=Reply(delay_seconds=60),
    route={"limits": {"total_seconds": 0.2}},
)


def _cut(type: str, says: str, text: str) -> Callable[[Ran], None]:
    # The answer had begun with 200, so the status says nothing; the type does.
    def check(ran: Ran) -> None:
        failure = ran.outcome.failure
        assert failure is not None, "the stream ended as if it were whole"
        assert (failure.kind, failure.type) == ("APIStatusError", type), failure
        assert says in failure.message
        assert failure.request_id == ran.outcome.headers["request-id"]
        assert ran.outcome.text == text

    return check


for die in ("mid_stream", "mid_event", "mid_chunk", "no_done"):
    TABLE.add(
        f"stream-dies-{die.replace('_', '-')}",
        (ask(stream=True),),
        _cut("api_error", "broke off in mid-stream", _WORDS),
        reply=Reply(die=die),
    )
TABLE.add(
    "time-limit-between-tokens",
    (ask(stream=True),),
    _cut("timeout_error", "between two tokens", "t0 t1 "),
    reply=Reply(hold_after=2),
    route={"limits": {"idle_seconds": 0.2}},
)
TABLE.add(
    "stream-with-an-error-event",
    (ask(stream=True),),
    _cut("overloaded_error", "all busy", "a"),
    reply=streamed(
        _BEGUN,
        named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        named("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"}),
        named("error", error={"type": "overloaded_error", "message": "all busy"}),
    ),
)
