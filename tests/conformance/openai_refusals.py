"""What users of OpenAI's libraries get when something is wrong: the exception's class and all its fields."""

import json
from dataclasses import replace
from typing import Any

from tests.conformance.openai_answers import chat, completion, embed, post, respond
from tests.conformance.scenario import BODY_MAX_BYTES, OTHER_MODEL, Call, Ran, Refusal, Table
from tests.fakes.surfaces import named
from tests.fakes.upstream import ROLE, Reply, event

TABLE = Table("openai")
_BAD = "invalid_request_error"


def _refused(status: int, type: str, code: str | None = None, **fields: Any) -> Refusal:
    kinds = {
        400: "BadRequestError",
        401: "AuthenticationError",
        403: "PermissionDeniedError",
        404: "NotFoundError",
        409: "ConflictError",
        422: "UnprocessableEntityError",
        429: "RateLimitError",
    }
    kind = kinds.get(status, "InternalServerError" if status >= 500 else "APIStatusError")
    return Refusal(kind, status, code, type, **fields)


def _broken(code: str, says: str, kind: str = "server_error") -> Refusal:
    # In a stream that had begun: there is no status any more.
    return Refusal("APIError", None, code, kind, says=says)


# Who asks.

_NO_KEY = _refused(401, _BAD, "invalid_api_key", says="No API key was given")
_WRONG_KEY = _refused(401, _BAD, "invalid_api_key", says="not valid")
for name, call in {"chat": chat(), "stream": chat(stream=True), "models": Call("models.list")}.items():
    TABLE.refused(f"wrong-key-{name}", replace(call, key="sk-wrong"), by=_WRONG_KEY)
    TABLE.refused(f"no-key-{name}", replace(call, headers={"Authorization": None}), by=_NO_KEY)
TABLE.refused("key-that-has-expired", chat(), by=_WRONG_KEY, key={"expires_at": "2020-01-01"})
TABLE.refused(
    "key-from-elsewhere",
    chat(),
    by=_refused(403, "permission_error", "address_denied", says="your address"),
    key={"networks": ["192.0.2.0/24"]},
)
TABLE.refused(
    "key-for-other-models",
    chat(),
    by=_refused(403, "permission_error", "model_not_allowed", param="model", says="may not use"),
    key={"models": [OTHER_MODEL]},
)

# What for.

_NO_MODEL = _refused(404, _BAD, "model_not_found", param="model", says="'nobody' does not exist")
for name, call in {
    "chat": chat(model="nobody"),
    "stream": chat(model="nobody", stream=True),
    "completions": completion(model="nobody"),
    "embeddings": embed(model="nobody"),
    "responses": respond(model="nobody"),
    "retrieve": Call("models.retrieve", ("nobody",)),
}.items():
    TABLE.refused(f"unknown-model-{name}", call, by=_NO_MODEL)
TABLE.refused(
    "model-of-another-key",
    Call("models.retrieve", (OTHER_MODEL,)),
    by=replace(_NO_MODEL, says="does not exist"),
)
_NO_RESPONSE = _refused(
    404, _BAD, "response_not_found", param="response_id", says="'resp_never' is not known"
)
for name in ("retrieve", "cancel", "delete", "input_items.list"):
    TABLE.refused(
        f"unknown-response-{name.replace('.', '-')}",
        Call(f"responses.{name}", ("resp_never",)),
        by=_NO_RESPONSE,
    )
for name, call in {
    "files": Call("files.list"),
    "batches": Call("batches.list"),
    "fine-tuning": Call("fine_tuning.jobs.list"),
    "vector-stores": Call("vector_stores.list"),
    "made-up": post("/nothing/here", {"model": "$MODEL"}),
}.items():
    TABLE.refused(
        f"unknown-path-{name}", call, by=_refused(404, _BAD, "unknown_url", says="Unknown path /v1/")
    )
TABLE.refused(
    "wrong-method",
    Call("get", ("/chat/completions",)),
    by=_refused(405, _BAD, "method_not_allowed", says="GET is not possible here, POST is"),
)
TABLE.refused(
    "wrong-method-of-models",
    post("/models", {}),
    by=_refused(405, _BAD, "method_not_allowed", says="POST is not possible here, GET"),
)

# What is wrong in it.

_MALFORMED: dict[str, Any] = {
    "max_tokens": "many",
    "stream": "maybe",
    "n": {},
    "user": 5,
    "stream_options": 7,
    "prompt_cache_key": [],
}
for field, value in _MALFORMED.items():
    TABLE.refused(
        f"malformed-{field.replace('_', '-')}",
        post("/chat/completions", {"model": "$MODEL", "messages": [], field: value}),
        by=_refused(400, _BAD, param=field, says=f"`{field}`"),
    )
TABLE.refused(
    "malformed-no-model",
    post("/chat/completions", {"messages": []}),
    by=_refused(400, _BAD, param="model", says="`model` is missing"),
)
TABLE.refused("malformed-empty-model", chat(model=""), by=_refused(400, _BAD, param="model", says="empty"))
TABLE.refused(
    "too-large",
    chat(messages=[{"role": "user", "content": "x" * (2 * BODY_MAX_BYTES)}]),
    by=_refused(413, _BAD, says=f"larger than {BODY_MAX_BYTES} bytes"),
)
TABLE.refused(
    "much-too-large",
    chat(messages=[{"role": "user", "content": "x" * (16 * BODY_MAX_BYTES)}]),
    by=_refused(413, _BAD, says=f"larger than {BODY_MAX_BYTES} bytes"),
)


# What engines refuse, in the words of each.


def _error(status: int, **fields: Any) -> Reply:
    return Reply(status=status, body=json.dumps({"error": fields}).encode())


_VLLM_CONTEXT = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."
_LLAMACPP_CONTEXT = "the request exceeds the available context size, try increasing it"
TABLE.refused(
    "context-too-long-vllm",
    chat(),
    by=_refused(400, _BAD, "context_length_exceeded", param="input_tokens", says=_VLLM_CONTEXT),
    reply=_error(400, message=_VLLM_CONTEXT, type="BadRequestError", param="input_tokens", code=400),
)
TABLE.refused(
    "context-too-long-llamacpp",
    chat(stream=True),
    by=_refused(400, _BAD, "context_length_exceeded", says=_LLAMACPP_CONTEXT),
    reply=_error(
        400, message=_LLAMACPP_CONTEXT, type="exceed_context_size_error", code=400, n_prompt_tokens=9, n_ctx=8
    ),
)
TABLE.refused(
    "engine-refuses-a-field",
    chat(temperature=9),
    by=_refused(400, _BAD, param="temperature", says="must be"),
    reply=_error(
        400, message="temperature must be in [0, 2]", type="BadRequestError", param="temperature", code=400
    ),
)
TABLE.refused(
    "engine-without-the-path",
    respond(),
    by=_refused(400, _BAD, "endpoint_not_supported", param="model", says="/v1/responses"),
    reply=Reply(status=404, body=b'{"detail":"Not Found"}'),
)
TABLE.refused(
    "engine-refuses-the-gateways-key",
    chat(),
    by=_refused(502, "server_error", "engine_refused", says="the gateway's key"),
    reply=_error(401, message="Invalid API Key", code=401),
)
for status in (409, 422):
    TABLE.refused(
        f"engine-says-{status}",
        chat(),
        by=_refused(status, _BAD, says="told to"),
        reply=_error(status, message="told to", type=_BAD),
    )
for status, code in {500: None, 502: None, 503: "server_is_overloaded"}.items():
    for form, call in {"": chat(), "-stream": chat(stream=True)}.items():
        TABLE.refused(
            f"engine-says-{status}{form}",
            call,
            by=_refused(
                status, "server_error", code, says="told to fail", retry_after="2" if status == 503 else None
            ),
            reply=Reply(status=status),
        )
TABLE.refused(
    "engine-says-429",
    chat(),
    by=_refused(429, "rate_limit_error", "rate_limit_exceeded", says="told to", retry_after="2"),
    reply=_error(429, message="told to", code=429),
)
TABLE.refused(
    "engine-answers-in-plain-text",
    chat(),
    by=_refused(502, "server_error", says="bad gateway, said a proxy"),
    reply=Reply(status=502, body=b"bad gateway, said a proxy", kind="text/plain"),
)

# Limits.

_AT_ONCE = _refused(
    429, "rate_limit_error", "rate_limit_exceeded", says="1 requests under way", retry_after="1"
)
TABLE.refused("rate-limited-at-once", chat(), by=_AT_ONCE, held=True, key={"concurrency": 1})
TABLE.refused("rate-limited-stream", chat(stream=True), by=_AT_ONCE, held=True, key={"concurrency": 1})


@TABLE(chat(), spent=True, key={"rpm": 1})
def rate_limited_requests(ran: Ran) -> None:
    seconds = ran.outcome.headers["retry-after"]
    assert 0 < int(seconds) <= 60
    _refused(429, "requests", "rate_limit_exceeded", says="1 requests a minute", retry_after=seconds)(ran)
    assert ran.outcome.headers["x-ratelimit-limit-requests"] == "1"
    assert ran.outcome.headers["x-ratelimit-remaining-requests"] == "0"


@TABLE(chat(), spent=True, key={"tpm": 10})
def rate_limited_tokens(ran: Ran) -> None:
    seconds = ran.outcome.headers["retry-after"]
    assert 0 < int(seconds) <= 60
    _refused(429, "tokens", "rate_limit_exceeded", says="10 tokens a minute", retry_after=seconds)(ran)


@TABLE(replace(chat(), retries=1), held=True, key={"concurrency": 1})
def rate_limited_again_after_waiting(ran: Ran) -> None:
    replace(_AT_ONCE, attempts=2)(ran)
    assert ran.outcome.seconds >= 1


_SPENT = _refused(429, "insufficient_quota", "insufficient_quota", says="has used its 5 tokens")
for period in ("day", "month"):
    # The libraries are told not to try again.
    TABLE.refused(
        f"budget-of-a-{period}-is-spent",
        replace(chat(), retries=2),
        by=replace(_SPENT, says=f"5 tokens of this {period}"),
        spent=True,
        key={f"tokens_per_{period}": 5},
    )

_BUSY = _refused(503, "server_error", "server_is_overloaded", says="queue is full", retry_after="2")
TABLE.refused("queue-full", chat(), by=_BUSY, held=True, route={"concurrency": 1, "queue_max": 0})
TABLE.refused(
    "queue-full-stream", chat(stream=True), by=_BUSY, held=True, route={"concurrency": 1, "queue_max": 0}
)
TABLE.refused(
    "queue-too-slow",
    chat(),
    by=replace(_BUSY, says="stayed busy for too long", retry_after="5"),
    held=True,
    route={"concurrency": 1, "queue_seconds": 0.2},
)

# Engines that are not there, or go.

_GONE = _refused(
    502, "server_error", "engine_unreachable", says="could not be reached or broke off", retry_after="2"
)
TABLE.refused("engine-not-there", chat(), by=_GONE, served="nowhere")
TABLE.refused("engine-not-there-stream", chat(stream=True), by=_GONE, served="nowhere")
TABLE.refused(
    "model-without-engine",
    chat(),
    by=_refused(503, "server_error", "model_not_ready", says="it is loading", retry_after="10"),
    served="without",
)
for die in ("at_once", "after_head", "mid_body"):
    TABLE.refused(f"engine-dies-{die.replace('_', '-')}", chat(), by=_GONE, reply=Reply(die=die))
TABLE.refused("engine-dies-before-content", chat(stream=True), by=_GONE, reply=Reply(die="before_content"))


def _cut(by: Refusal, text: str) -> Any:
    def check(ran: Ran) -> None:
        assert ran.outcome.text == text
        by(ran)

    return check


_BROKE = _broken("stream_broken", "broke off in mid-stream")
for die in ("mid_stream", "mid_event", "mid_chunk", "no_done"):
    TABLE.add(
        f"stream-dies-{die.replace('_', '-')}",
        (chat(stream=True),),
        _cut(_BROKE, "t0 t1 t2 "),
        reply=Reply(die=die),
    )
TABLE.add(
    "response-stream-dies", (respond(stream=True),), _cut(_BROKE, "t0 t1 t2 "), reply=Reply(die="mid_stream")
)
TABLE.add(
    "stream-with-an-error-event",
    (chat(stream=True),),
    _cut(_broken("oom", "out of memory", "internal_error"), "a"),
    reply=Reply(
        raw=[
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
            ROLE,
            event("a"),
            b'data: {"error": {"message": "out of memory", "type": "internal_error", "code": "oom"}}\n\n',
        ],
        close=True,
    ),
)
TABLE.refused(
    "stream-with-an-error-event-first",
    chat(stream=True),
    by=_refused(500, "internal_error", says="out of memory"),
    reply=Reply(error_event=b'data: {"error": {"message": "out of memory", "type": "internal_error"}}\n\n'),
)
TABLE.add(
    "response-stream-with-an-error-event",
    (respond(stream=True),),
    _cut(_broken("oom", "out of memory"), ""),
    reply=Reply(
        raw=[
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
            named("response.created", sequence_number=0, response={"id": "resp_x", "status": "in_progress"}),
            named("response.output_text.delta", sequence_number=1, delta="", item_id="m"),
            named("error", sequence_number=2, code="oom", message="out of memory", param=None),
        ],
        close=True,
    ),
)

# Time.

_LATE = _refused(504, "timeout", "engine_timeout", says="took too long")
# The libraries are told not to try again.
TABLE.refused(
    "time-limit",
    replace(chat(), retries=2),
    by=replace(_LATE, says="for the whole answer"),
    reply=Reply(delay_seconds=60),
    route={"limits": {"total_seconds": 0.2}},
)
TABLE.refused(
    "time-limit-of-the-first-token",
    replace(chat(stream=True), retries=2),
    by=replace(_LATE, says="to begin its answer"),
    reply=Reply(delay_seconds=60),
    route={"limits": {"first_token_seconds": 0.2}},
)
TABLE.add(
    "time-limit-between-tokens",
    (chat(stream=True),),
    _cut(_broken("engine_timeout", "between two tokens", "timeout"), "t0 t1 "),
    reply=Reply(hold_after=2),
    route={"limits": {"idle_seconds": 0.2}},
)


@TABLE(replace(chat(stream=True), timeout_seconds=0.5), reply=Reply(delay_seconds=60))
def a_library_gives_up_before_the_first_event(ran: Ran) -> None:
    Refusal("APITimeoutError", None, says="timed out")(ran)
    assert ran.aborted()
