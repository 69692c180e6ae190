"""StreamRelay: an engine's event stream on its way to the client, in the engine's own bytes if possible."""

import re
from collections.abc import Callable
from typing import Final

from cortex_gateway import sse
from cortex_gateway.chunks import SIZES, ChunkReader, payload
from cortex_gateway.event_relay import EventRelay

# The text of an event, in which quotes have backslashes.
_TEXT = re.compile(rb'"(?:content|text)":"([^"\\]*)"')


def _is_plain(block: bytes) -> bool:
    # Whether nothing in it says that usage, an end or an error is near. By find, since `in` first tries
    # whether its operand is a number, which takes twice as long as the search.
    find = block.find
    return (
        find(b'"usage":{') < 0
        and find(b'"finish_reason":"') < 0
        and find(b"[DONE]") < 0
        and find(b'"error"') < 0
        and find(b'": ') < 0
    )


CROWD_EVENTS: Final = 32
"""A quick reader tells once in so many events, if they come one by one."""

type Read = Callable[[bytes], None]
type QuickReader = Callable[[ChunkReader, Read, Read, Callable[[], None]], Read]


class StreamRelay(EventRelay):
    """A stream of completions: events that only carry text, then a reason to finish, usage, `[DONE]`.

    After the first content, blocks of whole events pass as they came; only blocks in which a substring says
    that usage, an end or an error is near are taken apart.
    """

    __slots__ = ("_hide_usage", "finished")

    def __init__(self, *, chunked: bool, hide_usage: bool, event_max_bytes: int) -> None:
        """`chunked`: the client takes chunks. `hide_usage`: it did not ask for the usage event."""
        super().__init__(chunked=chunked, event_max_bytes=event_max_bytes)
        self._hide_usage = hide_usage
        self.finished = False

    @property
    def complete(self) -> bool:
        """Whether the stream said that it is over: `[DONE]`, or a reason to finish."""
        return self.done or self.finished

    def block(self, block: bytes, whole: bool) -> bytes:
        """Complete chunks as they came → what to write now, framed for the client."""
        if (
            self.committed
            and whole
            and not self.rest
            and self._chunked
            and self.error is None
            and _is_plain(block)
        ):
            # Every event ends with LF LF, which JSON cannot hold: counting them counts events.
            self.tokens += block.count(b"\n\n") - block.count(b"\n:")
            return block
        return self.body(payload(block))

    def quick_reader(self, chunks: ChunkReader, write: Read, slow: Read, crowd: Callable[[], None]) -> Read:
        """What reads the engine's bytes once the stream has begun: most of them are one event in one chunk,
        and pass with next to no work; `slow` takes the others. Whatever passes adds to `tokens`, and `crowd`
        is called once for each `CROWD_EVENTS` of it.

        Events of a stream differ in their text alone. One that begins and ends as a plain one before it, with
        no quote between, says no more than that one did.

        A closure, since names in its cells cost less than attributes, and this runs once per token.
        """
        tail, size_of = chunks.tail, SIZES.get
        begin = end = b""
        # Of a plain event: up to its text, from its text on, and of the chunk's size in digits.
        begin_size = end_size = digits = 0

        def read(data: bytes) -> None:
            nonlocal begin, end, begin_size, end_size, digits
            size, line = len(data), digits
            # Slices are compared, for that costs half of what find() and startswith() do.
            if data[line : line + 2] != b"\r\n":
                line = data.find(b"\r\n", 0, 8)
            text_at, text_end = line + begin_size, size - end_size
            if size_of(data[:line]) != size - line - 4 or tail or self.rest:
                slow(data)
            elif (
                begin_size
                and data[line:text_at] == begin
                and data[text_end:] == end
                and text_end >= text_at
                and data.find(b'"', text_at, text_end) < 0
            ):
                digits = line
                self.tokens += 1
                write(data)
                if self.tokens % CROWD_EVENTS == 0:
                    crowd()
            elif data.endswith(b"\n\n\r\n") and _is_plain(data) and data.find(b"\n:") < 0:
                events = data.count(b"\n\n")
                self.tokens += events
                text = _TEXT.search(data) if events == 1 else None
                if text is not None:
                    begin, end, digits = data[line : text.start(1)], data[text.end(1) :], line
                    begin_size, end_size = len(begin), len(end)
                write(data)
            else:
                slow(data)

        return read

    def _look(self, event: bytes) -> bool:
        if self.error is not None:
            return False
        said = sse.read(event)
        if said.error is not None:
            self.error = said.error
            return False
        if said.usage is not None:
            self.usage = said.usage
        self.done = self.done or said.done
        self.finished = self.finished or said.finished
        if said.content:
            self.tokens += 1
        if said.content or said.finished or said.done or said.opaque:
            self.committed = True
        return not (said.only_usage and self._hide_usage)
