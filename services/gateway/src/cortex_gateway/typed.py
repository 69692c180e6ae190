"""Relays of streams whose events have names (Responses, Messages), and of answers that are only passed on.

Each has StreamRelay's interface: one attempt, one relay; nothing is given before the first content.
"""

import msgspec

from cortex_gateway import sse
from cortex_gateway.chunks import frame, payload
from cortex_gateway.relay import QuickReader
from cortex_gateway.sse import UNREADABLE, EngineUsage
from cortex_gateway.usage import AnyUsage, of_other

_HELD_MAX_BYTES = 64 * 1024


class TypedRelay:
    """What both named kinds have in common; a subclass says what an event means, and which blocks are plain.

    `began` is the usage that was told with the beginning: what the prompt took, if the end never comes.
    `id` is what the engine calls the answer, where it may be asked for again.
    """

    __slots__ = (
        "_chunked",
        "_event_max",
        "_held",
        "_rest",
        "began",
        "committed",
        "done",
        "error",
        "failed",
        "id",
        "tokens",
        "usage",
    )

    events = True
    quick_reader: QuickReader | None = None

    def __init__(self, *, chunked: bool, hide_usage: bool, event_max_bytes: int) -> None:
        """`chunked`: the client takes chunks. `hide_usage` has no meaning here."""
        self._chunked = chunked
        self._event_max = event_max_bytes
        self._held: list[bytes] = []
        self._rest = b""
        self.committed = False
        self.done = False
        self.tokens = 0
        self.usage: EngineUsage | None = None
        self.began: EngineUsage | None = None
        self.error: bytes | None = None
        self.failed = False
        self.id: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the stream said that it is over."""
        return self.done

    @property
    def too_large(self) -> bool:
        """Whether an event is larger than any may be."""
        return len(self._rest) > self._event_max

    def block(self, block: bytes, whole: bool) -> bytes:
        """Complete chunks as they came → what to write now, framed for the client."""
        if self.committed and whole and not self._rest and self._chunked and self.error is None:
            deltas = self._deltas(block)
            if deltas is not None:
                self.tokens += deltas
                return block
        return self.body(payload(block))

    def body(self, data: bytes) -> bytes:
        """Content without framing → what to write now, framed for the client."""
        events, self._rest = sse.split(self._rest + data if self._rest else data)
        return self._give([event for event in events if self._look(event)])

    def end(self) -> bytes:
        """The engine's stream ended as HTTP wants it: what is left, if its last blank line is missing."""
        rest, self._rest = self._rest, b""
        passed = [rest] if rest and self._look(rest) else []
        if self.done:
            self.committed = True
        return self._give(passed)

    def _give(self, passed: list[bytes]) -> bytes:
        if self._held or not self.committed:
            self._held += passed
            # Metadata without end is no reason to hold everything: give up the chance of another engine.
            if not self.committed and sum(map(len, self._held)) <= _HELD_MAX_BYTES:
                return b""
            self.committed = True
            passed, self._held = self._held, []
        content = b"".join(passed)
        return frame(content) if self._chunked else content

    def _look(self, event: bytes) -> bool:
        # Whether the client gets it. After an error nothing follows: the gateway tells it in its own words.
        if self.error is not None:
            return False
        data = sse.data_of(event)
        if not data:
            return True
        if self._read(data):
            return True
        self.error = self.error or data
        return False

    def _deltas(self, block: bytes) -> int | None:
        """How many pieces of content are in the block; None if there may be anything else that matters.

        Quotes in strings are escaped, so that what is looked for cannot be content.
        """
        raise NotImplementedError

    def _read(self, data: bytes) -> bool:
        """Take what an event's data says; false for an error."""
        raise NotImplementedError


class _Response(msgspec.Struct):
    id: object = None
    error: object = None
    usage: AnyUsage | None = None
    background: object = None


class _ResponsesEvent(msgspec.Struct):
    type: object = None
    response: _Response | None = None
    error: object = None


_RESPONSES = msgspec.json.Decoder(_ResponsesEvent)
_RESPONSES_ENDS = ("response.completed", "response.incomplete", "response.cancelled")
_RESPONSES_BEGINNINGS = (
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
)


class ResponsesRelay(TypedRelay):
    """A stream of /v1/responses: usage is in its last event, `[DONE]` is not needed."""

    __slots__ = ()

    def _deltas(self, block: bytes) -> int | None:
        if b'"response":' in block or b'"error"' in block:
            return None
        return block.count(b'.delta"')

    def _read(self, data: bytes) -> bool:
        try:
            said = _RESPONSES.decode(data)
        except UNREADABLE:
            self.committed = True
            return True
        kind = said.type
        if kind == "error" or said.error:
            return False
        response = said.response
        if response is not None:
            if kind == "response.failed" and not self._fail(response):
                return False
            if self.id is None and isinstance(response.id, str):
                self.id = response.id
            if response.usage is not None:
                self.usage = response.usage.counted()
        self.done = self.done or kind in _RESPONSES_ENDS
        if isinstance(kind, str) and kind.endswith(".delta"):
            self.tokens += 1
        # Who lets it run in the background wants its id, not its content.
        if kind not in _RESPONSES_BEGINNINGS or (response is not None and response.background is True):
            self.committed = True
        return True

    def _fail(self, response: _Response) -> bool:
        # The engine says so itself, in an event that clients know: theirs, if another can no more be tried.
        self.failed = self.done = self.committed
        if not self.committed:
            self.error = msgspec.json.encode({"error": response.error})
        return self.committed


class _Message(msgspec.Struct):
    usage: AnyUsage | None = None


class _MessagesEvent(msgspec.Struct):
    type: object = None
    message: _Message | None = None
    usage: AnyUsage | None = None
    error: object = None


_MESSAGES = msgspec.json.Decoder(_MessagesEvent)
_MESSAGES_BEGINNINGS = ("message_start", "content_block_start", "ping")


class MessagesRelay(TypedRelay):
    """A stream of /v1/messages: the prompt's usage comes first, the rest with `message_delta`."""

    __slots__ = ()

    def _deltas(self, block: bytes) -> int | None:
        if b'"message_' in block or b'"error"' in block:
            return None
        return block.count(b'"content_block_delta"')

    def _read(self, data: bytes) -> bool:
        try:
            said = _MESSAGES.decode(data)
        except UNREADABLE:
            self.committed = True
            return True
        kind = said.type
        if kind == "error" or said.error:
            return False
        if said.message is not None and said.message.usage is not None:
            self.began = said.message.usage.counted()
        if kind == "message_delta" and said.usage is not None:
            self._end_usage(said.usage)
        self.done = self.done or kind == "message_stop"
        if kind == "content_block_delta":
            self.tokens += 1
        if kind not in _MESSAGES_BEGINNINGS:
            self.committed = True
        return True

    def _end_usage(self, said: AnyUsage) -> None:
        usage, began = said.counted(), self.began
        if said.input_tokens is None and began is not None:
            usage.prompt_tokens = began.prompt_tokens
            usage.prompt_tokens_details = usage.prompt_tokens_details or began.prompt_tokens_details
        self.usage = usage


class PassRelay:
    """An answer that only passes: sound, text, or a stream of a kind of which nothing is known.

    `events`: whether it is a stream of events, to which an error can be added. They are counted.
    """

    __slots__ = ("_chunked", "committed", "events", "tokens", "usage")

    began: EngineUsage | None = None
    error: bytes | None = None
    failed = False
    id: str | None = None
    too_large = False
    complete = True
    quick_reader: QuickReader | None = None

    def __init__(self, *, chunked: bool, events: bool) -> None:
        """`chunked`: the client takes chunks."""
        self._chunked = chunked
        self.events = events
        self.committed = False
        self.tokens = 0
        self.usage: EngineUsage | None = None

    def block(self, block: bytes, whole: bool) -> bytes:
        """Complete chunks as they came → what to write now, framed for the client."""
        if not self._chunked:
            return self.body(payload(block))
        self._count(block)
        return block

    def body(self, data: bytes) -> bytes:
        """Content without framing → what to write now, framed for the client."""
        self._count(data)
        return frame(data) if self._chunked else data

    def end(self) -> bytes:
        """The engine's answer ended as HTTP wants it."""
        self.committed = True
        return b""

    def _count(self, data: bytes) -> None:
        self.committed = True
        if not self.events:
            return
        self.tokens += data.count(b"data:") - data.count(b"data: [DONE]")
        at = data.rfind(b'"usage"')
        if at >= 0:
            # If its event came in one piece.
            event = data[max(0, data.rfind(b"data:", 0, at)) :].partition(b"\n\n")[0]
            self.usage = of_other(sse.data_of(event)).usage or self.usage
