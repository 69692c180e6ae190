"""Relays of streams whose events have names (Responses, Messages), and of answers that are only passed on.

Each has StreamRelay's interface: one attempt, one relay; nothing is given before the first content.
"""

import msgspec

from cortex_gateway import sse
from cortex_gateway.chunks import frame, payload
from cortex_gateway.completions import UNREADABLE, AnyUsage, EngineUsage
from cortex_gateway.event_relay import EventRelay
from cortex_gateway.named_events import MESSAGES, RESPONSES
from cortex_gateway.relay import QuickReader
from cortex_gateway.usage import of_other


class TypedRelay(EventRelay):
    """What both named kinds share; a subclass says what an event means, and which blocks are plain."""

    __slots__ = ()

    quick_reader: QuickReader | None = None

    def __init__(self, *, chunked: bool, hide_usage: bool, event_max_bytes: int) -> None:
        """`chunked`: the client takes chunks. `hide_usage` has no meaning here."""
        super().__init__(chunked=chunked, event_max_bytes=event_max_bytes)

    def block(self, block: bytes, whole: bool) -> bytes:
        """Complete chunks as they came → what to write now, framed for the client."""
        if self.committed and whole and not self.rest and self._chunked and self.error is None:
            deltas = self._deltas(block)
            if deltas is not None:
                self.tokens += deltas
                return block
        return self.body(payload(block))

    def _look(self, event: bytes) -> bool:
        if self.error is not None:
            return False
        data = sse.data_of(event)
        if not data:
            return True
        try:
            self.error = self._read(data)
        except UNREADABLE:
            self.committed = True
        return self.error is None

    def _deltas(self, block: bytes) -> int | None:
        """How many pieces of content are in the block; None if there may be anything else that matters.

        Quotes in strings are escaped, so that what is looked for cannot be content.
        """
        raise NotImplementedError

    def _read(self, data: bytes) -> bytes | None:
        """Take what an event's data says; the error, if it is one. Raises one of UNREADABLE."""
        raise NotImplementedError


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

    def _read(self, data: bytes) -> bytes | None:
        said = RESPONSES.decode(data)
        kind = said.type
        if kind == "error" or said.error:
            return data
        response = said.response
        if response is not None:
            if kind == "response.failed":
                if not self.committed:
                    return msgspec.json.encode({"error": response.error})
                # The engine says so itself, in an event that clients know, and no other can be tried now.
                self.failed = True
                self.done = True
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
        return None


_MESSAGES_BEGINNINGS = ("message_start", "content_block_start", "ping")


class MessagesRelay(TypedRelay):
    """A stream of /v1/messages: the prompt's usage comes first, the rest with `message_delta`."""

    __slots__ = ()

    def _deltas(self, block: bytes) -> int | None:
        if b'"message_' in block or b'"error"' in block:
            return None
        return block.count(b'"content_block_delta"')

    def _read(self, data: bytes) -> bytes | None:
        said = MESSAGES.decode(data)
        kind = said.type
        if kind == "error" or said.error:
            return data
        if said.message is not None and said.message.usage is not None:
            self.began = said.message.usage.counted()
        if kind == "message_delta" and said.usage is not None:
            self._end_usage(said.usage)
        self.done = self.done or kind == "message_stop"
        if kind == "content_block_delta":
            self.tokens += 1
        if kind not in _MESSAGES_BEGINNINGS:
            self.committed = True
        return None

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
