"""What users of OpenAI's libraries get from a real llama.cpp server with a tiny model, which tells STORY.

Its template knows no tools, so that there are none here.
"""

import json
import math
from typing import Any

from cortex_llamacpp.tiny import STORY

from tests.conformance.openai_answers import chat, completion, embed, post, respond
from tests.conformance.scenario import Call, Ran, Refusal, Table

TABLE = Table("openai")
_WORDS = STORY.split()
_SHORT: dict[str, Any] = {"temperature": 0, "max_tokens": 6}


def _said(text: str, count: int = 6) -> None:
    assert text.split() == _WORDS[:count]


@TABLE(chat(**_SHORT), served="story")
def real_chat(ran: Ran) -> None:
    choice = ran.value["choices"][0]
    _said(choice["message"]["content"])
    assert choice["finish_reason"] == "length"
    assert ran.value["usage"]["completion_tokens"] == 6
    assert ran.value["usage"]["prompt_tokens"] > 6


@TABLE(chat(stream=True, stream_options={"include_usage": True}, **_SHORT), served="story")
def real_chat_stream(ran: Ran) -> None:
    _said(ran.outcome.text)
    assert ran.events[-1]["choices"] == []
    assert ran.events[-1]["usage"]["completion_tokens"] == 6


@TABLE(chat(stream=True, **_SHORT), served="story")
def real_chat_stream_without_usage(ran: Ran) -> None:
    _said(ran.outcome.text)
    assert all(len(chunk["choices"]) == 1 for chunk in ran.events)


@TABLE(chat(n=2, **_SHORT), served="story")
def real_chat_two_choices(ran: Ran) -> None:
    assert sorted(choice["index"] for choice in ran.value["choices"]) == [0, 1]
    for choice in ran.value["choices"]:
        _said(choice["message"]["content"])


@TABLE(chat(logprobs=True, top_logprobs=2, **_SHORT), served="story")
def real_chat_logprobs(ran: Ran) -> None:
    told = ran.value["choices"][0]["logprobs"]["content"]
    assert len(told) == 6
    _said("".join(each["token"] for each in told))
    assert all(each["logprob"] <= 0 and len(each["top_logprobs"]) == 2 for each in told)


_SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["word"],
    "additionalProperties": False,
}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": _SCHEMA}}


@TABLE(chat(temperature=0, max_tokens=60, response_format=_FORMAT), served="story")
def real_chat_by_a_schema(ran: Ran) -> None:
    assert json.loads(ran.value["choices"][0]["message"]["content"])["word"] in ("yes", "no")


@TABLE(completion(**_SHORT), served="story")
def real_completion(ran: Ran) -> None:
    assert ran.value["choices"][0]["text"].split()[0] in _WORDS
    assert ran.value["usage"]["completion_tokens"] == 6


@TABLE(completion(stream=True, **_SHORT), served="story")
def real_completion_stream(ran: Ran) -> None:
    assert len(ran.outcome.text.split()) == 6
    assert ran.events[-1]["choices"][0]["finish_reason"] == "length"


@TABLE(completion(prompt=["Once", "Once upon"], **_SHORT), served="story")
def real_completion_of_two_prompts(ran: Ran) -> None:
    assert sorted(choice["index"] for choice in ran.value["choices"]) == [0, 1]
    assert all(choice["text"].strip() for choice in ran.value["choices"])


@TABLE(respond(temperature=0, max_output_tokens=6), served="story")
def real_response(ran: Ran) -> None:
    _said(ran.value["output"][0]["content"][0]["text"])
    assert ran.value["usage"]["output_tokens"] == 6


@TABLE(respond(temperature=0, max_output_tokens=6, stream=True), served="story")
def real_response_stream(ran: Ran) -> None:
    _said(ran.outcome.text)
    assert ran.events[-1]["type"] == "response.completed"


@TABLE(Call("responses.input_tokens.count", fields={"model": "$MODEL", "input": "Hello"}), served="story")
def real_input_tokens(ran: Ran) -> None:
    assert ran.value["input_tokens"] > 3


@TABLE(
    embed(input=["a lake", "hot tea"]),
    embed(input=["a lake", "hot tea"], encoding_format="float"),
    served="vectors",
)
def real_embeddings(ran: Ran) -> None:
    packed, plain = ([each["embedding"] for each in outcome.value["data"]] for outcome in ran.outcomes)
    assert [len(vector) for vector in packed] == [256, 256]
    assert math.isclose(sum(x * x for x in packed[0]), 1, rel_tol=1e-3)
    for left, right in zip(packed, plain, strict=True):
        assert all(math.isclose(x, y, abs_tol=1e-5) for x, y in zip(left, right, strict=True))


@TABLE(
    post("/rerank", {"model": "$MODEL", "query": "the lake", "documents": ["tea", "the lake"]}),
    served="ranks",
)
def real_rerank(ran: Ran) -> None:
    assert sorted(each["index"] for each in ran.value["results"]) == [0, 1]


@TABLE(post("/tokenize", {"model": "$MODEL", "prompt": "Once upon one"}), served="story")
def real_tokenize(ran: Ran) -> None:
    assert (ran.value["count"], len(ran.value["tokens"])) == (3, 3)


_BAD = "invalid_request_error"
TABLE.refused(
    "real-context-too-long",
    chat(messages=[{"role": "user", "content": "word " * 9000}]),
    by=Refusal("BadRequestError", 400, "context_length_exceeded", _BAD, says="context size"),
    served="story",
)
_NOT_OFFERED = Refusal("BadRequestError", 400, "endpoint_not_supported", _BAD, "model", says="does not offer")
for name, call in {
    "speech": Call("audio.speech.create", fields={"model": "$MODEL", "input": "hi", "voice": "alloy"}),
    "images": Call("images.generate", fields={"model": "$MODEL", "prompt": "a lake"}),
    "moderation": Call("moderations.create", fields={"model": "$MODEL", "input": "hi"}),
    "score": post("/score", {"model": "$MODEL", "text_1": "a", "text_2": "b"}),
}.items():
    TABLE.refused(f"real-engine-without-{name}", call, by=_NOT_OFFERED, served="story")
