"""StreamRelay: an engine's event stream on its way to the client, in the engine's own bytes if possible."""

from cortex_gateway import sse
from cortex_gateway.chunks import frame, payload

_HELD_MAX = 64 * 1024


class StreamRelay:
    """Takes what the engine sends and gives what the client gets. One attempt, one relay.

    Until the first content nothing is given (`committed` is false), so that another engine may still be
    tried. After it, blocks of whole events pass as they came; only blocks in which a substring says that
    usage, an end or an error is near are taken apart.
    """

    __slots__ = (
        "_chunked",
        "_event_max",
        "_held",
        "_hide_usage",
        "_rest",
        "committed",
        "done",
        "error",
        "finished",
        "tokens",
        "usage",
    )

    def __init__(self, *, chunked: bool, hide_usage: bool, event_max_bytes: int) -> None:
        """`chunked`: the client takes chunks. `hide_usage`: it did not ask for the usage event."""
        self._chunked = chunked
        self._hide_usage = hide_usage
        self._event_max = event_max_bytes
        self._held: list[bytes] = []
        self._rest = b""
        self.committed = False
        self.done = False
        self.finished = False
        self.tokens = 0
        self.usage: sse.EngineUsage | None = None
        self.error: bytes | None = None

    @property
    def complete(self) -> bool:
        """Whether the stream said that it is over: `[DONE]`, or a reason to finish."""
        return self.done or self.finished

    @property
    def too_large(self) -> bool:
        """Whether an event is larger than any may be."""
        return len(self._rest) > self._event_max

    def block(self, block: bytes, whole: bool) -> bytes:
        """Complete chunks as they came → what to write now, framed for the client."""
        if (
            self.committed
            and whole
            and not self._rest
            and self._chunked
            and b'"usage":{' not in block
            and b'"finish_reason":"' not in block
            and b"[DONE]" not in block
            and b'"error"' not in block
            and b'": ' not in block
        ):
            # Every event ends with LF LF, which JSON cannot hold: counting them counts events.
            self.tokens += block.count(b"\n\n") - block.count(b"\r\n:")
            return block
        return self.body(payload(block))

    def body(self, data: bytes) -> bytes:
        """Content without framing → what to write now, framed for the client."""
        events, self._rest = sse.split(self._rest + data if self._rest else data)
        passed: list[bytes] = []
        for event in events:
            if self._look(event):
                passed.append(event)
        return self._give(passed)

    def end(self) -> bytes:
        """The engine's stream ended as HTTP wants it: what is left, if its last blank line is missing."""
        rest, self._rest = self._rest, b""
        passed = [rest] if rest and self._look(rest) else []
        if self.complete:
            self.committed = True
        return self._give(passed)

    def _give(self, passed: list[bytes]) -> bytes:
        if self._held or not self.committed:
            self._held += passed
            # Metadata without end is no reason to hold everything: give up the chance of another engine.
            if not self.committed and sum(map(len, self._held)) <= _HELD_MAX:
                return b""
            self.committed = True
            passed, self._held = self._held, []
        content = b"".join(passed)
        return frame(content) if self._chunked else content

    def _look(self, event: bytes) -> bool:
        # Whether the client gets it.
        said = sse.read(event)
        if said.usage is not None:
            self.usage = said.usage
        if said.error is not None:
            self.error = said.error
        self.done = self.done or said.done
        self.finished = self.finished or said.finished
        if said.content:
            self.tokens += 1
        if said.content or said.finished or said.done or said.opaque:
            self.committed = True
        return not (said.only_usage and self._hide_usage)
