"""What users of OpenAI's libraries get from scripted engines: every endpoint that is served."""

import base64
import json
from dataclasses import replace
from typing import Any

from tests.conformance.scenario import QUESTION, Call, Ran, Table
from tests.fakes.surfaces import (
    CACHED_TOKENS,
    PROMPT_TOKENS,
    SOUND,
    named,
    response,
    responses_stream,
    to_json,
)
from tests.fakes.upstream import DONE, FINISH, ROLE, Reply, event

TABLE = Table("openai")
_WORDS = "t0 t1 t2 "
_EVENTS_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
ACCENTS = "né 🚀 日本"


def answered(document: dict[str, Any]) -> Reply:
    """A whole answer."""
    return Reply(body=json.dumps(document, ensure_ascii=False).encode())


def streamed(*pieces: bytes) -> Reply:
    """A stream in these very pieces, which need not end where events do."""
    return Reply(raw=[_EVENTS_HEAD, *pieces], close=True)


def chat(**fields: Any) -> Call:
    """A chat completion."""
    return Call("chat.completions.create", fields={"model": "$MODEL", "messages": QUESTION, **fields})


def completion(**fields: Any) -> Call:
    """A completion of text."""
    return Call("completions.create", fields={"model": "$MODEL", "prompt": "Once", **fields})


def respond(**fields: Any) -> Call:
    """A response."""
    return Call("responses.create", fields={"model": "$MODEL", "input": "Hello", **fields})


def embed(**fields: Any) -> Call:
    """Embeddings."""
    return Call("embeddings.create", fields={"model": "$MODEL", "input": "Hello", **fields})


def post(path: str, body: dict[str, Any]) -> Call:
    """A path for which the library has no method."""
    return Call("post", (path,), {"body": body})


def _message(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, **fields}


def _completion(*choices: dict[str, Any], kind: str = "chat.completion") -> dict[str, Any]:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    numbered = [{"index": at, "finish_reason": "stop", **choice} for at, choice in enumerate(choices)]
    return {
        "id": "cmpl-1",
        "object": kind,
        "created": 1,
        "model": "m",
        "choices": numbered,
        "usage": usage,
    }


# Models.


@TABLE(Call("models.list"))
def models_list(ran: Ran) -> None:
    (model,) = ran.value
    assert (model["id"], model["object"], model["owned_by"]) == (ran.model, "model", "cortex")
    assert model["created"] > 0


@TABLE(Call("models.retrieve", ("$MODEL",)))
def models_retrieve(ran: Ran) -> None:
    assert ran.value["id"] == ran.model
    assert ran.outcome.request_id == ran.outcome.headers["x-request-id"]


@TABLE(Call("models.retrieve", ("org/$MODEL",)))
def models_retrieve_alias_with_slash(ran: Ran) -> None:
    assert ran.value["id"] == f"org/{ran.model}"


# Chat.


@TABLE(chat(max_tokens=9, temperature=0.5))
def chat_plain(ran: Ran) -> None:
    choice = ran.value["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": _WORDS}
    assert choice["finish_reason"] == "stop"
    assert (ran.value["usage"]["prompt_tokens"], ran.value["usage"]["completion_tokens"]) == (7, 3)
    assert ran.outcome.request_id == ran.outcome.headers["x-request-id"]
    assert ran.body == {"model": ran.model, "messages": QUESTION, "max_tokens": 9, "temperature": 0.5}


@TABLE(replace(chat(), headers={"X-Request-Id": "mine-42"}))
def chat_with_a_request_id_of_its_own(ran: Ran) -> None:
    assert ran.value["choices"][0]["message"]["content"] == _WORDS
    assert ran.outcome.request_id == "mine-42"


@TABLE(chat(stream=True))
def chat_stream(ran: Ran) -> None:
    assert ran.outcome.text == _WORDS
    # Who did not ask for usage gets no event without choices, which most programs would fall over.
    assert all(len(chunk["choices"]) == 1 for chunk in ran.events)
    assert not any(chunk.get("usage") for chunk in ran.events)
    assert [chunk["choices"][0].get("finish_reason") for chunk in ran.events][-1] == "stop"
    assert ran.events[0]["choices"][0]["delta"]["role"] == "assistant"


@TABLE(chat(stream=True, stream_options={"include_usage": True}))
def chat_stream_with_usage(ran: Ran) -> None:
    last = ran.events[-1]
    assert last["choices"] == []
    usage = last["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (PROMPT_TOKENS, 3)
    assert usage["prompt_tokens_details"]["cached_tokens"] == CACHED_TOKENS
    assert ran.outcome.text == _WORDS


@TABLE(replace(chat(), method="chat.completions.stream"))
def chat_stream_put_together(ran: Ran) -> None:
    choice = ran.value["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (_WORDS, "stop")


@TABLE(chat(stream=True), reply=Reply(events=2000))
def chat_stream_of_two_thousand_events(ran: Ran) -> None:
    assert ran.outcome.text == "".join(f"t{number} " for number in range(2000))


_TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
_TOOL_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Köln"}'},
}


@TABLE(
    chat(tools=_TOOLS, tool_choice="auto"),
    reply=answered(
        _completion({"message": _message(tool_calls=[_TOOL_CALL]), "finish_reason": "tool_calls"})
    ),
)
def chat_tools(ran: Ran) -> None:
    choice = ran.value["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == [_TOOL_CALL]
    assert (ran.body["tools"], ran.body["tool_choice"]) == (_TOOLS, "auto")


@TABLE(
    chat(
        messages=[
            *QUESTION,
            _message(tool_calls=[_TOOL_CALL]),
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ]
    )
)
def chat_tool_results(ran: Ran) -> None:
    assert ran.value["choices"][0]["message"]["content"] == _WORDS
    assert ran.body["messages"][1]["tool_calls"] == [_TOOL_CALL]
    assert ran.body["messages"][2]["content"] == "rain"


def _tool_delta(arguments: str, **fields: Any) -> bytes:
    return event(None, delta={"tool_calls": [{"index": 0, "function": {"arguments": arguments}, **fields}]})


@TABLE(
    chat(stream=True, tools=_TOOLS),
    reply=streamed(
        ROLE,
        event(
            None,
            delta={
                "tool_calls": [
                    {
                        "index": 0,
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": ""},
                    }
                ]
            },
        ),
        _tool_delta('{"city": "K'),
        _tool_delta('öln"}'),
        event(None, finish_reason="tool_calls"),
        DONE,
    ),
)
def chat_stream_tools(ran: Ran) -> None:
    deltas = [chunk["choices"][0]["delta"].get("tool_calls") for chunk in ran.events]
    calls = [calls[0] for calls in deltas if calls]
    assert (calls[0]["id"], calls[0]["function"]["name"]) == ("call_1", "weather")
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Köln"}
    assert ran.events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@TABLE(
    chat(n=2),
    reply=answered(_completion({"message": _message(content="one")}, {"message": _message(content="two")})),
)
def chat_two_choices(ran: Ran) -> None:
    assert [(each["index"], each["message"]["content"]) for each in ran.value["choices"]] == [
        (0, "one"),
        (1, "two"),
    ]
    assert ran.body["n"] == 2


@TABLE(
    chat(n=2, stream=True),
    reply=streamed(
        event("a", index=0), event("x", index=1), event("b", index=0), event("y", index=1), FINISH, DONE
    ),
)
def chat_stream_two_choices(ran: Ran) -> None:
    texts = {0: "", 1: ""}
    for chunk in ran.events:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == {0: "ab", 1: "xy"}


_LOGPROBS: dict[str, Any] = {
    "content": [{"token": "hi", "logprob": -0.25, "bytes": [104, 105], "top_logprobs": []}],
    "refusal": None,
}


@TABLE(
    chat(logprobs=True, top_logprobs=1),
    reply=answered(_completion({"message": _message(content="hi"), "logprobs": _LOGPROBS})),
)
def chat_logprobs(ran: Ran) -> None:
    assert ran.value["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.25
    assert (ran.body["logprobs"], ran.body["top_logprobs"]) == (True, 1)


_ACCENTED = event(ACCENTS).replace(
    json.dumps(ACCENTS).encode(), json.dumps(ACCENTS, ensure_ascii=False).encode()
)


@TABLE(
    chat(stream=True, messages=[{"role": "user", "content": ACCENTS}]),
    # Every byte on its own: letters of two to four bytes come in parts.
    reply=streamed(ROLE, *(bytes([byte]) for byte in _ACCENTED), event("!"), FINISH, DONE),
)
def chat_stream_letters_in_parts(ran: Ran) -> None:
    assert ran.outcome.text == f"{ACCENTS}!"
    assert ran.body["messages"][0]["content"] == ACCENTS


@TABLE(
    chat(stream=True),
    reply=streamed(
        ROLE,
        event("a").replace(b"\n\n", b"\r\n\r\n"),
        b": a comment\n\n",
        b"data:" + event("b")[6:],
        FINISH,
        DONE,
    ),
)
def chat_stream_other_line_ends(ran: Ran) -> None:
    assert ran.outcome.text == "ab"


@TABLE(chat(stream=True), reply=streamed(ROLE, event("a"), FINISH))
def chat_stream_without_done(ran: Ran) -> None:
    # It said why it finished, so it is whole.
    assert ran.outcome.text == "a"
    assert ran.events[-1]["choices"][0]["finish_reason"] == "stop"


# Completions.


@TABLE(completion(max_tokens=4))
def completions_plain(ran: Ran) -> None:
    assert ran.value["choices"][0]["text"] == _WORDS
    assert ran.value["usage"]["completion_tokens"] == 3


def _text(text: str, **fields: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": None, **fields}
    document = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + to_json(document) + b"\n\n"


@TABLE(
    completion(stream=True), reply=streamed(_text("a"), _text("b"), _text("", finish_reason="length"), DONE)
)
def completions_stream(ran: Ran) -> None:
    assert ran.outcome.text == "ab"
    assert ran.events[-1]["choices"][0]["finish_reason"] == "length"


@TABLE(
    completion(prompt=["Once", "Twice"], echo=True),
    reply=answered(_completion({"text": "Once a"}, {"text": "Twice b"}, kind="text_completion")),
)
def completions_of_two_prompts(ran: Ran) -> None:
    assert [choice["text"] for choice in ran.value["choices"]] == ["Once a", "Twice b"]
    assert (ran.body["prompt"], ran.body["echo"]) == (["Once", "Twice"], True)


# Embeddings.


@TABLE(embed())
def embeddings_by_default_in_base64(ran: Ran) -> None:
    # The libraries ask for base64, and unpack it.
    assert ran.body["encoding_format"] == "base64"
    assert ran.value["data"][0]["embedding"] == [1.0, 2.0]
    assert ran.value["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


@TABLE(embed(encoding_format="float"))
def embeddings_in_floats(ran: Ran) -> None:
    assert ran.value["data"][0]["embedding"] == [1.0, 2.0]


@TABLE(embed(encoding_format="base64"))
def embeddings_in_base64(ran: Ran) -> None:
    assert ran.value["data"][0]["embedding"] == "AACAPwAAAEA="


# Responses.

_KEPT = answered(response(3, id="resp_$MODEL"))
_ID = "resp_$MODEL"


@TABLE(respond(), reply=_KEPT)
def responses_create(ran: Ran) -> None:
    assert (ran.value["id"], ran.value["status"]) == (f"resp_{ran.model}", "completed")
    assert ran.value["output"][0]["content"][0]["text"] == _WORDS
    assert ran.value["usage"]["output_tokens"] == 3
    assert ran.outcome.request_id == ran.outcome.headers["x-request-id"]


@TABLE(respond(stream=True))
def responses_stream_events(ran: Ran) -> None:
    kinds = [each["type"] for each in ran.events]
    assert kinds[0] == "response.created"
    assert kinds.count("response.output_text.delta") == 3
    assert kinds[-1] == "response.completed"
    assert ran.outcome.text == _WORDS
    assert ran.events[-1]["response"]["usage"]["input_tokens"] == PROMPT_TOKENS


@TABLE(replace(respond(), method="responses.stream"))
def responses_stream_put_together(ran: Ran) -> None:
    assert (ran.value["status"], ran.value["output"][0]["content"][0]["text"]) == ("completed", _WORDS)


@TABLE(respond(), Call("responses.retrieve", (_ID,)), reply=_KEPT)
def responses_retrieve(ran: Ran) -> None:
    assert (ran.value["id"], ran.value["status"]) == (f"resp_{ran.model}", "completed")
    assert [request.method for request in ran.run.engines[0].requests] == ["POST", "GET"]


_STORED_STREAM = responses_stream(3, "resp_$MODEL")


@TABLE(
    respond(),
    Call("responses.retrieve", (_ID,), {"stream": True}),
    replies=(_KEPT,),
    reply=streamed(*_STORED_STREAM.first, *_STORED_STREAM.content, *_STORED_STREAM.last),
)
def responses_retrieve_as_a_stream(ran: Ran) -> None:
    assert ran.outcome.text == _WORDS
    assert ran.events[-1]["type"] == "response.completed"


@TABLE(respond(), respond(previous_response_id=_ID), reply=_KEPT)
def responses_go_on(ran: Ran) -> None:
    assert ran.value["status"] == "completed"
    assert ran.body["previous_response_id"] == f"resp_{ran.model}"


@TABLE(
    respond(background=True),
    Call("responses.cancel", (_ID,)),
    replies=(answered(response(3, id=_ID, status="in_progress")),),
    reply=answered(response(3, id=_ID, status="cancelled")),
)
def responses_cancel(ran: Ran) -> None:
    assert ran.value["status"] == "cancelled"
    assert ran.run.engines[0].requests[-1].path == f"/v1/responses/resp_{ran.model}/cancel"


@TABLE(
    respond(),
    Call("responses.delete", (_ID,)),
    replies=(_KEPT,),
    reply=answered({"id": _ID, "object": "response.deleted", "deleted": True}),
)
def responses_delete(ran: Ran) -> None:
    assert ran.outcome.failure is None
    last = ran.run.engines[0].requests[-1]
    assert (last.method, last.path) == ("DELETE", f"/v1/responses/resp_{ran.model}")


@TABLE(
    respond(),
    Call("responses.input_items.list", (_ID,)),
    replies=(_KEPT,),
    reply=answered(
        {
            "object": "list",
            "data": [
                {
                    "id": "msg_9",
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "Hello"}],
                }
            ],
            "first_id": "msg_9",
            "last_id": "msg_9",
            "has_more": False,
        }
    ),
)
def responses_input_items(ran: Ran) -> None:
    assert [(item["id"], item["content"][0]["text"]) for item in ran.value] == [("msg_9", "Hello")]


@TABLE(Call("responses.input_tokens.count", fields={"model": "$MODEL", "input": "Hello"}))
def responses_input_tokens(ran: Ran) -> None:
    assert ran.value["input_tokens"] == PROMPT_TOKENS


_FAILED = response(3, id=_ID, status="failed", error={"code": "server_error", "message": "gone wrong"})


@TABLE(
    respond(stream=True),
    reply=streamed(
        *_STORED_STREAM.first,
        *_STORED_STREAM.content,
        named("response.failed", sequence_number=9, response=_FAILED),
    ),
)
def responses_stream_that_the_engine_calls_failed(ran: Ran) -> None:
    # An event of the API's own, not an exception: programs look for it.
    assert ran.events[-1]["type"] == "response.failed"
    assert ran.events[-1]["response"]["error"]["message"] == "gone wrong"


# Sound, images, moderation.

_SOUND_FILE = {"$file": ["a.wav", "RIFF of sorts"]}


@TABLE(Call("audio.transcriptions.create", fields={"model": "$MODEL", "file": _SOUND_FILE}))
def transcription(ran: Ran) -> None:
    assert ran.value["text"] == _WORDS
    form = ran.run.engines[0].requests[-1].form
    assert (form["model"], form["file"]) == (ran.model.encode(), b"RIFF of sorts")


@TABLE(
    Call(
        "audio.transcriptions.create",
        fields={"model": "$MODEL", "file": _SOUND_FILE, "response_format": "text"},
    ),
    reply=Reply(body=b"just text", kind="text/plain; charset=utf-8"),
)
def transcription_as_text(ran: Ran) -> None:
    assert ran.value == "just text"


@TABLE(
    Call("audio.transcriptions.create", fields={"model": "$MODEL", "file": _SOUND_FILE, "stream": True}),
    reply=streamed(
        named("transcript.text.delta", delta="a"),
        named("transcript.text.delta", delta="b"),
        named("transcript.text.done", text="ab"),
    ),
)
def transcription_as_a_stream(ran: Ran) -> None:
    assert ran.outcome.text == "ab"
    assert ran.events[-1]["text"] == "ab"


@TABLE(Call("audio.translations.create", fields={"model": "$MODEL", "file": _SOUND_FILE}))
def translation(ran: Ran) -> None:
    assert ran.value["text"] == _WORDS


@TABLE(Call("audio.speech.create", fields={"model": "$MODEL", "input": "hi", "voice": "alloy"}))
def speech(ran: Ran) -> None:
    assert base64.b64decode(ran.value) == SOUND
    assert ran.outcome.headers["content-type"] == "audio/mpeg"


_IMAGES = answered({"created": 1, "data": [{"b64_json": "AAAA"}]})


@TABLE(Call("images.generate", fields={"model": "$MODEL", "prompt": "a lake"}), reply=_IMAGES)
def images_generate(ran: Ran) -> None:
    assert ran.value["data"][0]["b64_json"] == "AAAA"


@TABLE(
    Call("images.edit", fields={"model": "$MODEL", "prompt": "bluer", "image": {"$file": ["a.png", "PNG"]}}),
    reply=_IMAGES,
)
def images_edit(ran: Ran) -> None:
    assert ran.value["data"][0]["b64_json"] == "AAAA"
    assert ran.run.engines[0].requests[-1].form["prompt"] == b"bluer"


@TABLE(
    Call("moderations.create", fields={"model": "$MODEL", "input": "hi"}),
    reply=answered(
        {
            "id": "modr-1",
            "model": "m",
            "results": [{"flagged": True, "categories": {}, "category_scores": {}}],
        }
    ),
)
def moderation(ran: Ran) -> None:
    assert ran.value["results"][0]["flagged"] is True


# What the libraries have no methods for.

_DOCUMENTS = ["hot tea", "the lake"]


@TABLE(post("/rerank", {"model": "$MODEL", "query": "lake", "documents": _DOCUMENTS}))
def rerank(ran: Ran) -> None:
    assert [each["index"] for each in ran.value["results"]] == [0, 1]


@TABLE(post("/score", {"model": "$MODEL", "text_1": "lake", "text_2": "tea"}))
def score(ran: Ran) -> None:
    assert ran.value["data"][0]["score"] == 0.5


@TABLE(
    post("/tokenize", {"model": "$MODEL", "prompt": "ab"}),
    post("/detokenize", {"model": "$MODEL", "tokens": [97, 98]}),
)
def tokenize_and_detokenize(ran: Ran) -> None:
    assert ran.outcomes[0].value["tokens"] == [97, 98]
    assert ran.value["prompt"] == "ab"


# What the gateway does for users unseen.


@TABLE(chat(), engines=2, replies=(Reply(die="at_once"),))
def an_engine_that_dies_before_it_answers_is_not_seen(ran: Ran) -> None:
    assert ran.value["choices"][0]["message"]["content"] == _WORDS
    assert (ran.outcome.attempts, ran.asked) == (1, 2)


@TABLE(chat(stream=True), engines=2, replies=(Reply(die="before_content"),))
def a_stream_that_dies_before_content_is_not_seen(ran: Ran) -> None:
    assert ran.outcome.text == _WORDS
    assert [chunk["choices"][0]["delta"].get("role") for chunk in ran.events].count("assistant") == 1
    assert (ran.outcome.attempts, ran.asked) == (1, 2)


@TABLE(chat(), engines=2, replies=(Reply(status=500),))
def an_engine_that_fails_is_not_seen(ran: Ran) -> None:
    assert ran.value["choices"][0]["message"]["content"] == _WORDS
    assert (ran.outcome.attempts, ran.asked) == (1, 2)


@TABLE(replace(chat(), retries=1), replies=(Reply(status=429),))
def a_library_waits_as_told_and_gets_through(ran: Ran) -> None:
    assert ran.value["choices"][0]["message"]["content"] == _WORDS
    assert (ran.outcome.attempts, ran.asked) == (2, 2)
    # 2 s is what the gateway says; of itself no library waits longer than 0.5 s after a first refusal.
    assert ran.outcome.seconds >= 2


@TABLE(
    replace(chat(), retries=5, engine_go_on_refusal=True),
    held=True,
    key={"concurrency": 1},
)
def a_library_waits_for_its_keys_other_request(ran: Ran) -> None:
    assert ran.value["choices"][0]["message"]["content"] == _WORDS
    assert ran.outcome.attempts >= 2
    assert ran.outcome.seconds >= 1


@TABLE(replace(chat(), retries=1), replies=(Reply(status=500),))
def a_library_tries_again_after_an_engines_500(ran: Ran) -> None:
    assert ran.value["choices"][0]["message"]["content"] == _WORDS
    assert (ran.outcome.attempts, ran.asked) == (2, 2)


@TABLE(replace(chat(stream=True), leave_after=3), reply=Reply(hold_after=3, events=5))
def a_user_who_leaves_a_stream_frees_the_engine(ran: Ran) -> None:
    assert len(ran.events) == 3
    assert ran.aborted()


@TABLE(replace(respond(stream=True), leave_after=5), reply=Reply(hold_after=3, events=5))
def a_user_who_leaves_a_response_frees_the_engine(ran: Ran) -> None:
    assert len(ran.events) == 5
    assert ran.aborted()
