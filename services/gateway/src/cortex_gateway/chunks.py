"""Chunked transfer coding of answers, read in whole chunks, whose bytes can be passed on as they came."""

import re
from typing import Final

from cortex_shared.errors import InvalidInput

LAST: Final = b"0\r\n\r\n"
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\r\n]*)?[ \t]*\Z")
_LINE_MAX: Final = 256
_KNOWN_MAX: Final = 16_384

SIZES: dict[bytes, int] = {}
"""What size lines say, as far as they came before: plain ones of at most five digits. Bounded."""


def _broken() -> InvalidInput:
    return InvalidInput("the engine's chunk framing is broken", code="engine.bad_framing")


class ChunkReader:
    """Cuts a byte stream into blocks of complete chunks, keeping an incomplete one until it is whole."""

    __slots__ = ("_chunk_max", "_need", "ended", "excess", "tail")

    def __init__(self, chunk_max_bytes: int) -> None:
        self._chunk_max = chunk_max_bytes
        self.tail = bytearray()
        self._need = 0
        self.ended = False
        self.excess = False

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """The next block and whether each of its chunks ends with a blank line (LF LF).

        The block is framed as it came, without the last chunk, and may be empty. After the last chunk `ended`
        is true; `excess` tells that bytes came after it. Raises InvalidInput.
        """
        if self.tail:
            self.tail += data
            if len(self.tail) < self._need:
                return b"", True
            data = bytes(self.tail)
            self.tail.clear()
        position, length, whole = 0, len(data), True
        find, known, blank = data.find, SIZES.get, data.startswith
        while position < length:
            line = find(b"\r\n", position, position + _LINE_MAX)
            size = known(data[position:line]) if line > 0 else None
            if size is None:
                if line < 0:
                    if length - position >= _LINE_MAX:
                        raise _broken()
                    return self._keep(data, position, 0), whole
                size = self._size(data[position:line])
                if size == 0:
                    return self._finish(data, position, line), whole
            end = line + size + 4
            if end > length:
                return self._keep(data, position, end - position), whole
            if not blank(b"\n\n\r\n", end - 4):
                if not blank(b"\r\n", end - 2):
                    raise _broken()
                whole = False
            position = end
        return data, whole

    def _size(self, line: bytes) -> int:
        found = _SIZE.match(line)
        if found is None:
            raise _broken()
        size = int(found[1], 16)
        if size > self._chunk_max:
            raise InvalidInput("the engine sent too large a chunk", code="engine.too_large")
        # Below every bound that can be set for chunks.
        if 0 < size <= 0xFFFF and len(line) <= 5 and len(SIZES) < _KNOWN_MAX:
            SIZES[line] = size
        return size

    def _keep(self, data: bytes, position: int, need: int) -> bytes:
        self.tail += data[position:]
        self._need = need
        return data[:position]

    def _finish(self, data: bytes, position: int, line: int) -> bytes:
        # After the last chunk come trailers, which nobody wants, and an empty line.
        if data[line : line + 4] == b"\r\n\r\n":
            end = line + 4
        else:
            blank = data.find(b"\r\n\r\n", line)
            if blank < 0:
                if len(data) - line > 8192:
                    raise _broken()
                return self._keep(data, position, 0)
            end = blank + 4
        self.ended = True
        self.excess = end < len(data)
        return data[:position]


def payload(block: bytes) -> bytes:
    """The content of a block of complete chunks."""
    parts: list[bytes] = []
    position = 0
    while position < len(block):
        line = block.index(b"\r\n", position)
        size = int(block[position:line].partition(b";")[0], 16)
        parts.append(block[line + 2 : line + 2 + size])
        position = line + size + 4
    return parts[0] if len(parts) == 1 else b"".join(parts)


def frame(content: bytes) -> bytes:
    """One chunk; nothing for no content, which would end the answer."""
    return b"%x\r\n%b\r\n" % (len(content), content) if content else b""
