"""EventRelay: what all relays of event streams have in common, whatever their events say."""

from typing import Final

from cortex_gateway import sse
from cortex_gateway.chunks import frame
from cortex_gateway.completions import EngineUsage

_HELD_MAX_BYTES: Final = 64 * 1024


class EventRelay:
    """Takes what the engine sends and gives what the client gets. One attempt, one relay.

    Until the first content nothing is given (`committed` is false), so that another engine may still be
    tried. `rest` is the beginning of an event whose end is not there yet; `began` the usage that was told
    with the beginning: what the prompt took, if the end never comes; `id` what the engine calls the answer,
    where it may be asked for again; `failed` whether an event that clients know has told a failure.
    """

    __slots__ = (
        "_chunked",
        "_event_max",
        "_held",
        "began",
        "committed",
        "done",
        "error",
        "failed",
        "id",
        "rest",
        "tokens",
        "usage",
    )

    events = True

    def __init__(self, *, chunked: bool, event_max_bytes: int) -> None:
        self._chunked = chunked
        self._event_max = event_max_bytes
        self._held: list[bytes] = []
        self.rest: bytes | bytearray = b""
        self.committed: bool = False
        self.done: bool = False
        self.failed: bool = False
        self.tokens: int = 0
        self.usage: EngineUsage | None = None
        self.began: EngineUsage | None = None
        self.error: bytes | None = None
        self.id: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the stream said that it is over."""
        return self.done

    @property
    def too_large(self) -> bool:
        """Whether an event is larger than any may be."""
        return len(self.rest) > self._event_max

    def body(self, data: bytes) -> bytes:
        """Content without framing → what to write now, framed for the client."""
        rest = self.rest
        if rest:
            if not sse.ends(rest[-3:] + data):
                # What was searched for an end once is not searched again with each piece of a long event.
                self.rest = rest if isinstance(rest, bytearray) else bytearray(rest)
                self.rest += data
                return self._give([])
            data = bytes(rest) + data
        events, self.rest = sse.split(data)
        passed: list[bytes] = []
        for event in events:
            if self._look(event):
                passed.append(event)
        return self._give(passed)

    def end(self) -> bytes:
        """The engine's stream ended as HTTP wants it: what is left, if its last blank line is missing."""
        rest, self.rest = bytes(self.rest), b""
        passed = [rest] if rest and self._look(rest) else []
        if self.complete:
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
        """Whether the client gets this event, and what it says. After an error nothing follows, also no end
        that would commit it: the gateway tells it, in words that every client understands."""
        raise NotImplementedError
