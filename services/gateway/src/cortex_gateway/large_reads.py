"""LargeReads: large bodies are read to where they stay, not out of the loop's buffer into another."""

import asyncio
import sys
from typing import TYPE_CHECKING, Final

from cortex_gateway.sweep import Sweeper

if TYPE_CHECKING:
    from cortex_gateway.protocol import GatewayProtocol

LARGE_BYTES: Final = 128 * 1024
"""Of a body: from here on it is worth it. A piece has room for two of these."""

_ROOM_BYTES: Final = 2 * LARGE_BYTES + 8 * 1024
# A read of less is copied, for it would hold a whole piece: what is held is four times what came at most.
_KEPT_BYTES: Final = 64 * 1024
_PIECES_MAX: Final = 24
_REST_SECONDS: Final = 5.0


class Room:
    """The next piece of memory to read into: one for all connections, since a read is over at once.

    Pieces are used again, for a new one is filled with zeros first. Whoever has one need not give it back: it
    is free when nobody else holds it, as Python counts that.
    """

    __slots__ = ("_nobody", "_piece", "_pieces", "_rests_at", "_sweeper", "_used")

    def __init__(self, sweeper: Sweeper) -> None:
        self._sweeper = sweeper
        self._piece: bytearray | None = None
        # All that may be used again, also those that somebody has.
        self._pieces: list[bytearray] = [bytearray()]
        # What a piece that nobody has counts: how often this object and the question itself hold it.
        self._nobody = self._holders(0)
        self._pieces.clear()
        self._used = False
        self._rests_at = 0.0

    def get(self) -> bytearray:
        """The piece; what is in it is whose read it was, until the next."""
        piece = self._piece
        if piece is None:
            piece = self._piece = self._free()
        return piece

    def take(self) -> bytearray:
        """The piece, which is the caller's from now on, for as long as the caller holds it."""
        piece, self._piece = self.get(), None
        self._used = True
        return piece

    def give_back(self, piece: bytearray) -> None:
        """The caller does not want what it took."""
        self._piece = piece

    def tick(self, now: float) -> None:
        """From the sweeper: what was of no use for a while is let go."""
        if self._used:
            self._used, self._rests_at = False, now + _REST_SECONDS
        elif now >= self._rests_at:
            self._piece = None
            self._pieces.clear()
            self._sweeper.remove(self)

    @property
    def kept(self) -> int:
        """How many pieces are used again."""
        return len(self._pieces)

    def _free(self) -> bytearray:
        pieces = self._pieces
        for number in range(len(pieces)):
            if self._holders(number) == self._nobody:
                return pieces[number]
        piece = bytearray(_ROOM_BYTES)
        if len(pieces) < _PIECES_MAX:
            if not pieces:
                self._used = True
                self._sweeper.add(self)
            pieces.append(piece)
        return piece

    def _holders(self, number: int) -> int:
        # Asked in one place alone, so that it counts itself in the same way each time, compiled or not.
        return sys.getrefcount(self._pieces[number])


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
