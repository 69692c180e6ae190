"""LargeReads: large bodies are read to where they stay, not out of the loop's buffer into another."""

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cortex_gateway.protocol import GatewayProtocol

LARGE_BYTES: Final = 128 * 1024
"""Of a body: from here on it is worth it. A piece has room for two of these."""

_ROOM_BYTES: Final = 2 * LARGE_BYTES + 8 * 1024
# A read of less is copied, for it would hold a whole piece: what is held is four times what came at most.
_KEPT_BYTES: Final = 64 * 1024


class Room:
    """The next piece of memory to read into: one for all connections, since a read is over at once."""

    __slots__ = ("_piece",)

    def __init__(self) -> None:
        self._piece: bytearray | None = None

    def get(self) -> bytearray:
        """The piece; what is in it is whose read it was, until the next."""
        if self._piece is None:
            self._piece = bytearray(_ROOM_BYTES)
        return self._piece

    def take(self) -> bytearray:
        """The piece, which is the caller's from now on."""
        piece, self._piece = self.get(), None
        return piece

    def give_back(self, piece: bytearray) -> None:
        """The caller does not want what it took."""
        self._piece = piece


class LargeReads(asyncio.BufferedProtocol):
    """Stands in for a connection whose requests are large; when one is small, it reads for itself again."""

    def __init__(self, connection: "GatewayProtocol", transport: asyncio.Transport, room: Room) -> None:
        self._connection = connection
        self._transport = transport
        self._room = room
        self._on = False
        # The piece that the body at hand has, while there is room in it, and how much of it is filled.
        self._piece: bytearray | None = None
        self._filled = 0

    def begin(self) -> None:
        """Read from now on."""
        if not self._on:
            self._on = True
            self._transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """From the transport: where to read to."""
        piece = self._piece
        return memoryview(self._room.get()) if piece is None else memoryview(piece)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """From the transport: so much was read."""
        connection, piece = self._connection, self._piece
        left = connection.left
        if piece is not None:
            over = nbytes - left
            end = self._filled + nbytes
            rest = b"" if over <= 0 else bytes(memoryview(piece)[end - over : end])
            self._fill(piece, end, left - nbytes)
            connection.take_into(min(nbytes, left))
            if rest:
                connection.data_received(rest)
            return
        room = self._room
        if nbytes >= _KEPT_BYTES and (left >= nbytes or not left):
            piece = room.take()
            if left:
                self._fill(piece, nbytes, left - nbytes)
                connection.take_more(piece, nbytes)
                return
            if connection.take_large(piece, nbytes):
                self._fill(piece, nbytes, connection.left)
                return
            room.give_back(piece)
        connection.data_received(bytes(memoryview(room.get())[:nbytes]))
        if connection.left < _KEPT_BYTES:
            self._on = False
            self._transport.set_protocol(self._connection)

    def _fill(self, piece: bytearray, filled: int, left: int) -> None:
        # There is no room in a piece, or no need of it.
        self._piece = piece if left > 0 and filled < len(piece) else None
        self._filled = filled

    def connection_lost(self, exc: Exception | None) -> None:
        """From the transport."""
        self._piece = None
        self._connection.connection_lost(exc)

    def eof_received(self) -> None:
        """From the transport."""
        self._connection.eof_received()

    def pause_writing(self) -> None:
        """From the transport."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """From the transport."""
        self._connection.resume_writing()
