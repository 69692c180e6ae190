"""LargeBody: a body left in the pieces in which it came: joining them costs as much as sending them."""

from typing import Final

from cortex_gateway.gist import SMALL_BYTES, gist_of

_PIECES_MAX: Final = 64

type Buffer = bytes | memoryview


def is_large(pieces: int, size: int) -> bool:
    """Whether so many pieces of `size` bytes together are better left alone."""
    return size >= SMALL_BYTES and pieces <= _PIECES_MAX and size >= SMALL_BYTES // 4 * pieces


class LargeBody:
    """Pieces of bytes, of which the first may have something else before `start`, such as the head."""

    __slots__ = ("_end", "_pieces", "_start", "_tail", "size")

    def __init__(self, pieces: list[bytes], start: int, size: int) -> None:
        """`size`: bytes of the body."""
        self._pieces = pieces
        self._start = start
        self._end = len(pieces[-1])  # of the last piece, after which is the tail
        self._tail = b""
        self.size = size

    def gist(self) -> bytes:
        """What can be read in place of the body as it came; see `gist`."""
        return gist_of(self._pieces, self._start)

    def joined(self) -> bytes:
        """The body itself."""
        return b"".join(self.buffers())

    def buffers(self) -> list[Buffer]:
        """The body, to be written."""
        buffers: list[Buffer] = list(self._pieces)
        if self._tail:
            buffers[-1] = memoryview(self._pieces[-1])[: self._end]
            buffers.append(self._tail)
        if self._start:
            buffers[0] = memoryview(buffers[0])[self._start :]
        return buffers

    def add_field(self, field: bytes) -> bool:
        """Put a field at the end of the object, which must not be empty; false: it cannot be done here."""
        last = self._pieces[-1]
        end = last.rfind(b"}", self._start if len(self._pieces) == 1 else 0)
        if end < 0 or self._tail:
            return False
        self._end, self._tail = end, b",%b%b" % (field, last[end:])
        self.size += len(field) + 1
        return True
