"""Shelves: a piece of memory per process of a host, in which the others find its newest snapshot.

Made before the processes are forked, so that there is no file and no address: all have the same memory, and a
process that comes in place of a dead one finds what that one had put down last.
"""

import mmap
import struct
import zlib

# Address space, not memory: pages take room when they are first written.
SHELF_MAX_BYTES = 16 * 1024 * 1024

_HEAD = struct.Struct("<QII")  # generation, length, CRC-32
_DATA_MAX = SHELF_MAX_BYTES // 2 - _HEAD.size


class Shelf:
    """One process writes, all read. Two halves in turn: a writer killed in between leaves the other whole."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, SHELF_MAX_BYTES)

    @property
    def generation(self) -> int:
        """Grows with each `put`."""
        return max(self._head(0)[0], self._head(1)[0])

    def put(self, data: bytes) -> bool:
        """Put down a snapshot; False if it is larger than the shelf."""
        if len(data) > _DATA_MAX:
            return False
        generation = self.generation + 1
        at = self._at(generation & 1)
        # Not valid while it is written, whoever looks.
        self._map[at : at + _HEAD.size] = bytes(_HEAD.size)
        self._map[at + _HEAD.size : at + _HEAD.size + len(data)] = data
        self._map[at : at + _HEAD.size] = _HEAD.pack(generation, len(data), zlib.crc32(data))
        return True

    def get(self) -> bytes | None:
        """The newest snapshot that is whole; None if there is none."""
        for half in sorted((0, 1), key=lambda half: self._head(half)[0], reverse=True):
            generation, length, checksum = self._head(half)
            start = self._at(half) + _HEAD.size
            if generation and length <= _DATA_MAX:
                data = self._map[start : start + length]
                if zlib.crc32(data) == checksum:
                    return data
        return None

    def _at(self, half: int) -> int:
        return half * (SHELF_MAX_BYTES // 2)

    def _head(self, half: int) -> tuple[int, int, int]:
        at = self._at(half)
        return _HEAD.unpack(self._map[at : at + _HEAD.size])
