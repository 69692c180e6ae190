"""What the fake engine says at the endpoints besides chat, in the words of the real ones."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PROMPT_TOKENS = 7
CACHED_TOKENS = 2
SOUND = bytes(range(256)) * 40
"""What /v1/audio/speech says."""
RESPONSE_ID = "resp_fake"


def to_json(document: Any) -> bytes:
    """Compact, as the engines write it."""
    return json.dumps(document, separators=(",", ":")).encode()


@dataclass
class Stream:
    """An event stream: what comes first, each piece of content, and what ends it."""

    first: list[bytes]
    content: Sequence[bytes]
    last: list[bytes]


def named(name: str, **fields: Any) -> bytes:
    """A typed event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), to_json({"type": name, **fields}))


def words(count: int) -> list[str]:
    """The content, a piece an event."""
    return [f"t{number} " for number in range(count)]


def _responses_usage(count: int) -> dict[str, Any]:
    return {
        "input_tokens": PROMPT_TOKENS,
        "input_tokens_details": {"cached_tokens": CACHED_TOKENS},
        "output_tokens": count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": PROMPT_TOKENS + count,
    }


def response(
    count: int, id: str = RESPONSE_ID, *, status: str = "completed", **fields: Any
) -> dict[str, Any]:
    """A Responses API object."""
    text: dict[str, Any] = {"type": "output_text", "text": "".join(words(count)), "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": [text]}
    done = status == "completed"
    return {
        "id": id,
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": status,
        "output": [item] if done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": _responses_usage(count) if done else None,
        **fields,
    }


def responses_stream(count: int, id: str = RESPONSE_ID, *, background: bool = False) -> Stream:
    """Of /v1/responses."""
    begun = response(count, id, status="in_progress", background=background)
    nothing: list[Any] = []
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress"}
    item = {**item, "content": nothing}
    part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    text = "".join(words(count))
    return Stream(
        [
            named("response.created", sequence_number=0, response=begun),
            named("response.in_progress", sequence_number=1, response=begun),
            named("response.output_item.added", sequence_number=2, output_index=0, item=item),
            named("response.content_part.added", sequence_number=3, part=part, **where),
        ],
        [
            named("response.output_text.delta", sequence_number=4 + n, delta=word, logprobs=[], **where)
            for n, word in enumerate(words(count))
        ],
        [
            named("response.output_text.done", sequence_number=4 + count, text=text, logprobs=[], **where),
            named(
                "response.completed",
                sequence_number=5 + count,
                response=response(count, id, background=background),
            ),
        ],
    )


def message(count: int) -> dict[str, Any]:
    """A Messages API object."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "".join(words(count))}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": PROMPT_TOKENS - CACHED_TOKENS,
            "cache_read_input_tokens": CACHED_TOKENS,
            "output_tokens": count,
        },
    }


def messages_stream(count: int) -> Stream:
    """Of /v1/messages."""
    begun: dict[str, Any] = {**message(count), "content": [], "stop_reason": None}
    begun["usage"] = {**begun["usage"], "output_tokens": 0}
    return Stream(
        [
            named("message_start", message=begun),
            named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        ],
        [
            named("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
            for word in words(count)
        ],
        [
            named("content_block_stop", index=0),
            named(
                "message_delta",
                delta={"stop_reason": "end_turn", "stop_sequence": None},
                usage={"output_tokens": count},
            ),
            named("message_stop"),
        ],
    )


def transcription_stream(count: int) -> Stream:
    """Of /v1/audio/transcriptions, as vLLM has it."""

    def chunk(choices: list[Any], **fields: Any) -> bytes:
        document = {"id": "trsc-1", "object": "transcription.chunk", "choices": choices, **fields}
        return b"data: " + to_json(document) + b"\n\n"

    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": count}
    return Stream(
        [],
        [chunk([{"delta": {"content": word}}]) for word in words(count)],
        [chunk([], usage=usage), b"data: [DONE]\n\n"],
    )


def stream_of(path: str, count: int, body: dict[str, Any]) -> Stream | None:
    """The stream of a path that is not a chat's or completion's."""
    if path == "/v1/responses":
        return responses_stream(count, background=bool(body.get("background")))
    if path == "/v1/messages":
        return messages_stream(count)
    if path.startswith("/v1/audio/transcr"):
        return transcription_stream(count)
    return None


def _ranked(body: dict[str, Any]) -> list[dict[str, Any]]:
    documents: list[str] = body["documents"]
    return [
        {"index": n, "document": {"text": text}, "relevance_score": 1 / (n + 1)}
        for n, text in enumerate(documents)
    ]


def _tokenized(body: dict[str, Any]) -> dict[str, Any]:
    if "content" in body:  # llama.cpp
        letters: str = body["content"]
        ids = [ord(letter) for letter in letters]
        if body.get("with_pieces"):
            return {"tokens": [{"id": id, "piece": chr(id)} for id in ids]}
        return {"tokens": ids}
    text: str = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
    ids = [ord(letter) for letter in text]
    return {"count": len(ids), "max_model_len": 99, "tokens": ids, "token_strs": None}


def answer_of(path: str, count: int, body: dict[str, Any]) -> dict[str, Any] | None:
    """The whole answer of a path that is not a chat's, completion's or embedding's."""
    usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS}
    last = path.rsplit("/", 1)[-1]
    if path == "/v1/responses":
        return response(count, background=bool(body.get("background")))
    if path == "/v1/messages":
        return message(count)
    if last in ("count_tokens", "input_tokens"):
        return {"input_tokens": PROMPT_TOKENS}
    if last in ("rerank", "reranking"):
        return {"id": "rerank-1", "model": "m", "usage": usage, "results": _ranked(body)}
    if last == "score":
        return {"object": "list", "data": [{"index": 0, "object": "score", "score": 0.5}], "usage": usage}
    if last == "tokenize":
        return _tokenized(body)
    if last == "detokenize":
        text = "".join(map(chr, body["tokens"]))
        return {"prompt": text, "content": text}
    if path == "/infill":
        return {"content": "x", "tokens_evaluated": PROMPT_TOKENS, "tokens_predicted": count}
    if last in ("transcriptions", "translations"):
        return {"text": "".join(words(count)), "usage": {"type": "duration", "seconds": 1}}
    if last in ("moderations", "classify", "pooling", "generations", "edits"):
        return {"id": f"{last}-1", "data": [], "usage": {"input_tokens": PROMPT_TOKENS, "output_tokens": 1}}
    return None
