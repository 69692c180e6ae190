"""Reading a stream's events by a function of its relay, and several at a time where they come in crowds."""

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Final, cast

from cortex_gateway.relay import CROWD_EVENTS, Read

if TYPE_CHECKING:
    from cortex_gateway.pool import Pool
    from cortex_gateway.upstream import Connection

# Faster than this, events are no text that somebody reads as it appears.
_CROWD_SECONDS = CROWD_EVENTS / 1000
# A crowd is over when so many reads in a row bring one event alone.
_ALONE_MAX: Final = 4


class _StandIn(asyncio.Protocol):
    """Stands in for a connection while its bytes are read by a function."""

    def __init__(self, connection: "Connection", read: Read) -> None:
        # The transport asks for them once, when it is given its protocol.
        self.__dict__.update(data_received=read, connection_lost=connection.connection_lost)


class QuickReading:
    """One answer's bytes go to `read`, until `end`.

    While more than a thousand events come in a second, each with a system call to read it and another to
    write it, the connection rests a moment after each read (`gather_seconds`), so that the next brings
    several: they are passed on together, for little more than one costs.
    """

    __slots__ = ("_alone", "_connection", "_crowd_since", "_pool", "_read", "_resting", "_transport")

    def __init__(self, connection: "Connection", transport: asyncio.Transport, pool: "Pool") -> None:
        self._connection = connection
        self._transport = transport
        self._pool = pool
        self._read: Read | None = None
        self._crowd_since = 0.0
        self._alone = 0
        self._resting = False

    def begin(self, read: Read) -> None:
        """From now on the transport gives its bytes to `read`."""
        self._read = read
        self._transport.set_protocol(_StandIn(self._connection, read))

    def end(self) -> None:
        """The connection reads for itself again."""
        self._read = None
        self._transport.set_protocol(cast("asyncio.Protocol", self._connection))
        self.wake()

    def crowd(self) -> None:
        """Called once for each `CROWD_EVENTS` that came one by one."""
        now = perf_counter()
        if now - self._crowd_since < _CROWD_SECONDS and self._pool.settings.gather_seconds:
            self._transport.set_protocol(_StandIn(self._connection, self._read_several))
            self._rest()
        self._crowd_since = now

    def _read_several(self, data: bytes) -> None:
        self._connection.data_received(data)
        read = self._read
        if read is None:
            return  # that was the end
        self._alone = 0 if data.count(b"\n\n") > 1 else self._alone + 1
        if self._alone < _ALONE_MAX:
            self._rest()
        else:
            self._alone = 0
            self._transport.set_protocol(_StandIn(self._connection, read))

    def _rest(self) -> None:
        self._resting = True
        self._transport.pause_reading()
        self._pool.rest(self)

    def wake(self) -> None:
        """The moment is over."""
        if self._resting:
            self._resting = False
            self._connection.rested()
