"""The paths that are served in callbacks: what each takes, gives and asks of which engine.

All that differs between endpoints is here; whoever serves a request asks its HotPath, and no path's name.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from cortex_gateway import body as request_body
from cortex_gateway import forms, shapes, tokens, usage
from cortex_gateway.completions import EngineUsage
from cortex_gateway.dialect import LLAMACPP, VLLM, Dialect
from cortex_gateway.errors import ApiError
from cortex_gateway.relay import QuickReader, StreamRelay
from cortex_gateway.shapes import Shape
from cortex_gateway.typed import MessagesRelay, PassRelay, ResponsesRelay
from cortex_gateway.wanted import Wanted
from cortex_gateway.wire import JSON_TYPE, HeaderList, find


class Relay(Protocol):
    """An engine's answer on its way to the client: takes what comes, gives what is to be written.

    `committed`: content was given, so that no other engine can be tried. `error`: the data of an error event.
    `failed`: the engine told its failure in an event that was passed on. `began`: what is known of the usage
    before the end. `events`: whether an event may be added at the end. `quick_reader`: see StreamRelay; None
    where each piece must be looked at.
    """

    @property
    def committed(self) -> bool: ...
    @property
    def tokens(self) -> int: ...
    @property
    def usage(self) -> EngineUsage | None: ...
    @property
    def error(self) -> bytes | None: ...
    @property
    def complete(self) -> bool: ...
    @property
    def too_large(self) -> bool: ...
    @property
    def failed(self) -> bool: ...
    @property
    def events(self) -> bool: ...
    @property
    def began(self) -> EngineUsage | None: ...
    @property
    def id(self) -> str | None: ...
    @property
    def quick_reader(self) -> QuickReader | None: ...
    def block(self, block: bytes, whole: bool) -> bytes: ...
    def body(self, data: bytes) -> bytes: ...
    def end(self) -> bytes: ...


class MakeRelay(Protocol):
    """Makes the relay of one attempt."""

    def __call__(self, *, chunked: bool, hide_usage: bool, event_max_bytes: int) -> Relay: ...


type Fit = Callable[[bytes, Dialect], tuple[bytes, list[str]] | ApiError]
type AnswerEdit = Callable[[bytes, int | None], bytes]


def pass_events(*, chunked: bool, hide_usage: bool, event_max_bytes: int) -> Relay:
    """The relay of a stream of events of which nothing is known."""
    return PassRelay(chunked=chunked, events=True)


def _with_defaults(body: bytes, dialect: Dialect) -> tuple[bytes, list[str]] | ApiError:
    return dialect.adapt(body, translate=False) if dialect.always else (body, [])


def _translated(body: bytes, dialect: Dialect) -> tuple[bytes, list[str]] | ApiError:
    return dialect.adapt(body)


def _read(body: bytes) -> Wanted | ApiError:
    return forms.read(body) if forms.is_form(body) else request_body.read(body)


class HotPath:
    """One endpoint.

    - `operation` is what OpenTelemetry's conventions call that kind of request (`gen_ai.operation.name`), or
      would call it.
    - `streams`: `stream: true` means something there; `asks_usage`: only with `stream_options.include_usage`
      does the engine tell its usage.
    - `at`: where it differs, the path at a kind of engine; None where that kind has no such thing.
    - `fit` brings a body into the words of a route's engine; `fit_all`: whatever the body says.
    - `relay` makes the relay of a stream; `answer` reads a whole answer; `edits` rewrite it by engine.
    - `differs`: one of the above makes what an engine gets another than what the client sent.
    - `passes`: an answer that is not JSON goes to the client piece by piece.
    - `read` says what a body wants. `form`: it may be one. `remembers`: its answers can be asked for later.
    """

    __slots__ = (
        "answer",
        "asks_usage",
        "at",
        "differs",
        "edits",
        "fit",
        "fit_all",
        "form",
        "id_header",
        "operation",
        "passes",
        "path",
        "read",
        "relay",
        "remembers",
        "shape",
        "streams",
        "text",
    )

    def __init__(
        self,
        path: str,
        operation: str,
        *,
        streams: bool = False,
        asks_usage: bool = False,
        at: Mapping[str, str | None] | None = None,
        fit: Fit | None = None,
        fit_all: bool = False,
        relay: MakeRelay = StreamRelay,
        answer: Callable[[bytes], usage.Answer] = usage.of_other,
        edits: Mapping[str, AnswerEdit] | None = None,
        shape: Shape = shapes.OPENAI,
        passes: bool = False,
        form: bool = False,
        remembers: bool = False,
    ) -> None:
        self.text = path
        self.path = path.encode()
        self.operation = operation
        self.streams = streams
        self.asks_usage = asks_usage
        self.at = {kind: other.encode() if other else None for kind, other in (at or {}).items()}
        self.fit = fit
        self.fit_all = fit_all
        self.differs = bool(at) or fit_all or remembers
        self.relay = relay
        self.answer = answer
        self.edits = edits or {}
        self.shape = shape
        self.id_header: bytes | None = shape.id_header
        self.passes = passes
        self.form = form
        self.read = _read if form else request_body.read
        self.remembers = remembers

    def with_model(self, body: bytes, model: str) -> bytes:
        """The body with another model's name."""
        if self.form and forms.is_form(body):
            return forms.with_model(body, model)
        return request_body.with_model(body, model)

    def doubles_model(self, body: bytes) -> bool:
        """Whether the body names a model more than once, or may do so for another reader."""
        if self.form and forms.is_form(body):
            return forms.doubles_model(body)
        return request_body.doubles_model(body)

    def read_whole(self, body: bytes) -> Wanted | ApiError:
        """What a body wants whose gist was not enough."""
        return _read(body) if self.form else request_body.read_whole(body)

    def read_gist(self, gist: bytes) -> Wanted | ApiError | None:
        """What a body of this gist wants; None: the body itself is to be read."""
        return None if self.form else request_body.read_gist(gist)

    def gist_doubles_model(self, gist: bytes) -> bool | None:
        """Whether a body of this gist names a model more than once; None: the body itself is to be read."""
        return None if self.form else request_body.gist_doubles_model(gist)

    def content_type(self, headers: HeaderList) -> bytes:
        """The type under which a body goes to an engine."""
        return (find(headers, b"content-type") or JSON_TYPE) if self.form else JSON_TYPE


class StoredPath(HotPath):
    """One response that an engine keeps: the path of one request, with id and query in it."""

    __slots__ = ("method", "response", "target")

    def __init__(self, method: bytes, response: str, rest: str, query: bytes) -> None:
        stored = f"/v1/responses/{response}{rest}"
        super().__init__(
            f"/v1/responses/{{id}}{rest}",
            "recall",
            streams=True,
            relay=ResponsesRelay,
            answer=usage.of_nothing,
            shape=shapes.RESPONSES,
        )
        self.method = method
        self.response = response
        self.target = stored.encode() + (b"?" + query if query else b"")
        self.streams = b"stream=true" in query.lower()


_STORED = re.compile(rb"/v1/responses/([A-Za-z0-9_-]{1,256})(/cancel|/input_items)?\Z")
_STORED_METHODS: Mapping[bytes | None, tuple[bytes, ...]] = {
    None: (b"GET", b"DELETE"),
    b"/cancel": (b"POST",),
    b"/input_items": (b"GET",),
}
STORED_PREFIX = b"/v1/responses/"


def stored_path(method: bytes, path: bytes, query: bytes) -> StoredPath | None:
    """The stored response that a path names, if the method is one for it."""
    found = _STORED.match(path)
    if found is None or method not in _STORED_METHODS[found[2]]:
        return None
    return StoredPath(method, found[1].decode(), (found[2] or b"").decode(), query)


def methods_of(path: bytes) -> list[str] | None:
    """The methods of a hot path; None for a path that is none."""
    if path in HOT_PATHS:
        return ["POST"]
    found = _STORED.match(path)
    return None if found is None else [method.decode() for method in _STORED_METHODS[found[2]]]


def _spelled(operation: str, paths: tuple[str, ...], **fields: Any) -> list[HotPath]:
    return [HotPath(path, operation, **fields) for path in paths]


_NOT_LLAMACPP: Mapping[str, None] = {LLAMACPP: None}
_NEITHER: Mapping[str, None] = {LLAMACPP: None, VLLM: None}
_RERANK = {VLLM: "/v1/rerank", LLAMACPP: "/v1/rerank"}

HOT_PATHS: dict[bytes, HotPath] = {
    hot.path: hot
    for hot in (
        HotPath(
            "/v1/chat/completions",
            "chat",
            streams=True,
            asks_usage=True,
            fit=_translated,
            answer=usage.of_completion,
        ),
        HotPath(
            "/v1/completions",
            "text_completion",
            streams=True,
            asks_usage=True,
            fit=_translated,
            answer=usage.of_completion,
        ),
        HotPath("/v1/embeddings", "embeddings", answer=usage.of_vectors),
        HotPath(
            "/v1/responses",
            "chat",
            streams=True,
            fit=_with_defaults,
            relay=ResponsesRelay,
            shape=shapes.RESPONSES,
            remembers=True,
        ),
        HotPath("/v1/responses/input_tokens", "count_tokens", at={VLLM: None}),
        HotPath(
            "/v1/messages",
            "chat",
            streams=True,
            fit=_with_defaults,
            relay=MessagesRelay,
            shape=shapes.ANTHROPIC,
        ),
        HotPath("/v1/messages/count_tokens", "count_tokens", shape=shapes.ANTHROPIC),
        *_spelled(
            "rerank", ("/rerank", "/v1/rerank", "/v2/rerank", "/reranking", "/v1/reranking"), at=_RERANK
        ),
        *_spelled("score", ("/score", "/v1/score"), at={VLLM: "/v1/score", LLAMACPP: None}),
        *_spelled(
            "tokenize",
            ("/tokenize", "/v1/tokenize"),
            at={VLLM: "/tokenize", LLAMACPP: "/tokenize"},
            fit=tokens.fit_tokenize,
            fit_all=True,
            edits={LLAMACPP: tokens.answer_tokens},
        ),
        *_spelled(
            "detokenize",
            ("/detokenize", "/v1/detokenize"),
            at={VLLM: "/detokenize", LLAMACPP: "/detokenize"},
            edits={LLAMACPP: tokens.answer_text},
        ),
        *_spelled(
            "transcription",
            ("/v1/audio/transcriptions", "/v1/audio/translations"),
            streams=True,
            form=True,
            relay=pass_events,
            passes=True,
        ),
        HotPath("/v1/audio/speech", "speech", at=_NOT_LLAMACPP, streams=True, relay=pass_events, passes=True),
        *_spelled(
            "image",
            ("/v1/images/generations", "/v1/images/edits", "/v1/images/variations"),
            at=_NOT_LLAMACPP,
            streams=True,
            form=True,
            relay=pass_events,
            passes=True,
        ),
        HotPath("/v1/moderations", "moderation", at=_NEITHER),
        *_spelled("classify", ("/classify", "/v1/classify"), at={VLLM: "/classify", LLAMACPP: None}),
        *_spelled("pooling", ("/pooling", "/v1/pooling"), at={VLLM: "/pooling", LLAMACPP: None}, passes=True),
        *_spelled(
            "infill",
            ("/infill", "/v1/infill"),
            at={VLLM: None, LLAMACPP: "/infill"},
            streams=True,
            relay=pass_events,
            passes=True,
        ),
    )
}
