"""LargeBody: a body left in the pieces in which it came: joining them costs as much as sending them."""

from typing import Final

from cortex_gateway.gist import SMALL_BYTES, Piece, gist_of

_PIECES_MAX: Final = 64

type Buffer = bytes | memoryview


def is_large(pieces: int, size: int) -> bool:
    """Whether so many pieces of `size` bytes together are better left alone."""
    return size >= SMALL_BYTES and pieces <= _PIECES_MAX and size >= SMALL_BYTES // 4 * pieces


class LargeBody:
    """Pieces of a body, of which the first may have something else before `start`, such as the head."""

    __slots__ = ("_end", "_pieces", "_start", "_tail", "size")

    def __init__(self, pieces: list[Piece], start: int, stop: int, size: int) -> None:
        """`stop`: where the body ends in the last piece, 0: with it. `size`: bytes of the body."""
        self._pieces = pieces
        self._start = start
        self._end = stop or len(pieces[-1])  # in the last piece, after which is the tail
        self._tail = b""
        self.size = size

    def gist(self) -> bytes:
        """What can be read in place of the body as it came; see `gist`."""
        return gist_of(self._pieces, self._start, self._end)

    def joined(self) -> bytes:
        """The body itself."""
        return b"".join(self.buffers())

    def buffers(self) -> list[Buffer]:
        """The body, to be written."""
        buffers: list[Buffer] = []
        start, last = self._start, len(self._pieces) - 1
        for number, piece in enumerate(self._pieces):
            end = self._end if number == last else len(piece)
            if isinstance(piece, bytes) and not start and end == len(piece):
                buffers.append(piece)
            else:
                buffers.append(memoryview(piece)[start:end])
            start = 0
        if self._tail:
            buffers.append(self._tail)
        return buffers

    def add_field(self, field: bytes) -> bool:
        """Put a field at the end of the object, which must not be empty; false: it cannot be done here."""
        last = self._pieces[-1]
        end = last.rfind(b"}", self._start if len(self._pieces) == 1 else 0, self._end)
        if end < 0 or self._tail:
            return False
        self._tail = b",%b%b" % (field, bytes(last[end : self._end]))
        self._end = end
        self.size += len(field) + 1
        return True
