"""Worker: one of several gateway processes of a host, as its parent made it, and what the parent tells it."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import anyio
from cortex_shared.logs import get_logger

from cortex_gateway.host_limits import MESSAGE_MAX_BYTES, HostLimits
from cortex_gateway.siblings import Places

_log = get_logger("worker")

STOP, CUT, CHANGED, LIMITS = b"s", b"c", b"f", b"l"


@dataclass(frozen=True, slots=True)
class Worker:
    """Made by the parent, used in the child.

    `sockets` listen already; they are the parent's, who keeps them open, so that connections that came while
    no worker had them wait for the next. `control` carries STOP, CUT, or CHANGED with a descriptor of the new
    content; its end says that the parent is gone. `content` is what the parent had read of the routes file
    when this worker was made (empty without one).
    """

    place: int
    sockets: list[socket.socket]
    control: socket.socket
    places: Places
    limits: HostLimits
    content: bytes

    async def run(self, stops: "Stops", changed: Callable[[bytes], None] | None) -> None:
        """Hear the parent until cancelled; `changed` gets each new content of the routes file."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.control.fileno(), self._hear, stops, changed)
        try:
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    # It may come to all of a group together with the parent's word: still one stop.
                    stops.stop()
        finally:
            loop.remove_reader(self.control.fileno())

    def _hear(self, stops: "Stops", changed: Callable[[bytes], None] | None) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE_MAX_BYTES, 1)
        except BlockingIOError:
            return
        if data[:1] == LIMITS:
            self.limits.answered(data[1:])
        elif data == CHANGED and descriptors:
            content = _content(descriptors[0])
            if changed is not None:
                changed(content)
        elif data == CUT:
            stops.cut()
        elif data == STOP:
            stops.stop()
        else:
            _log.error("worker.parent_gone")
            asyncio.get_running_loop().remove_reader(self.control.fileno())
            stops.stop()


def _content(descriptor: int) -> bytes:
    # All workers have one file position between them: it is left alone.
    try:
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


class Stops:
    """What serve() stops by: one word to drain, however often it is said, and one more to cut."""

    def __init__(self) -> None:
        self._said = 0
        self._heard = 0
        self._some = asyncio.Event()

    def stop(self) -> None:
        """Drain and end."""
        self._say(1)

    def cut(self) -> None:
        """End now."""
        self._say(2)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> None:
        while self._heard >= self._said:
            await self._some.wait()
            self._some.clear()
        self._heard += 1

    def _say(self, upto: int) -> None:
        self._said = max(self._said, upto)
        self._some.set()
