"""Tokenize and detokenize: clients see vLLM's shape and may write a request in either engine's words."""

import msgspec

from cortex_gateway.completions import UNREADABLE
from cortex_gateway.dialect import LLAMACPP, VLLM, Dialect, Fields
from cortex_gateway.errors import ApiError, invalid_request

type Fitted = tuple[bytes, list[str]] | ApiError

_TRUE, _FALSE = msgspec.Raw(b"true"), msgspec.Raw(b"false")


def fit_tokenize(body: bytes, dialect: Dialect) -> Fitted:
    """A request to tokenize in the engine's words."""
    if dialect.engine not in (VLLM, LLAMACPP):
        return body, []
    try:
        fields = msgspec.json.decode(body, type=Fields)
    except UNREADABLE:
        return invalid_request("The request body has names that cannot be read.")
    if not fields.keys() & {"prompt", "content", "messages"}:
        return invalid_request("The field `prompt` is missing: the text to tokenize.", param="prompt")
    if dialect.engine == VLLM:
        return (_for_vllm(fields) if "prompt" not in fields and "messages" not in fields else body), []
    if "messages" in fields:
        return invalid_request(
            "The engine of this model tokenizes text only: give `prompt`. For the number of tokens of "
            "messages alone there is /v1/messages/count_tokens.",
            param="messages",
        )
    return _for_llamacpp(fields), []


def _for_vllm(fields: Fields) -> bytes:
    fields["prompt"] = fields.pop("content")
    # The engines differ in what they do when nothing is said: each text is treated as its words have it.
    fields.setdefault("add_special_tokens", fields.pop("add_special", _FALSE))
    if "with_pieces" in fields:
        fields.setdefault("return_token_strs", fields.pop("with_pieces"))
    return msgspec.json.encode(fields)


def _for_llamacpp(fields: Fields) -> bytes:
    if "prompt" in fields:
        fields["content"] = fields.pop("prompt")
        fields.setdefault("add_special", fields.pop("add_special_tokens", _TRUE))
    if "return_token_strs" in fields:
        fields.setdefault("with_pieces", fields.pop("return_token_strs"))
    # It takes true and false only.
    for name in ("add_special", "with_pieces"):
        if name in fields and bytes(fields[name]).strip() == b"null":
            del fields[name]
    return msgspec.json.encode(fields)


class _Piece(msgspec.Struct):
    id: int
    piece: str | list[int] = ""


class _Tokens(msgspec.Struct):
    tokens: list[int | _Piece]


class _Content(msgspec.Struct):
    content: str


def answer_tokens(answer: bytes, context_length: int | None) -> bytes:
    """llama.cpp's tokens in vLLM's shape; anything else as it came."""
    try:
        found = msgspec.json.decode(answer, type=_Tokens).tokens
    except UNREADABLE:
        return answer
    tokens: list[int] = []
    texts: list[str] = []
    for each in found:
        if isinstance(each, int):
            tokens.append(each)
        else:
            tokens.append(each.id)
            texts.append(_text(each.piece))
    return msgspec.json.encode(
        {
            "count": len(tokens),
            "max_model_len": context_length,
            "tokens": tokens,
            "token_strs": texts or None,
        }
    )


def _text(piece: str | list[int]) -> str:
    # Bytes that are no whole character come as numbers.
    if isinstance(piece, str):
        return piece
    return bytes(each & 0xFF for each in piece).decode("utf-8", "replace")


def answer_text(answer: bytes, _: int | None) -> bytes:
    """llama.cpp's text in vLLM's shape; anything else as it came."""
    try:
        text = msgspec.json.decode(answer, type=_Content).content
    except UNREADABLE:
        return answer
    return msgspec.json.encode({"prompt": text})
