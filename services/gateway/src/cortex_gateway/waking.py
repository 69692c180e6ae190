"""Waking: a process without a loop that waits for signals and sockets in one system call."""

import select
import signal
import socket
from collections.abc import Generator, Iterable
from contextlib import contextmanager

_SIGNALS_MAX = 4096


class Waking:
    """Takes these signals from now on, until `reset`."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._signals = tuple(signals)
        self._poll = select.poll()
        # Python writes the number of each signal here, also of one that comes just before the waiting.
        self._told, self._tell = socket.socketpair()
        self._told.setblocking(False)
        self._tell.setblocking(False)
        self._poll.register(self._told, select.POLLIN)
        for number in self._signals:
            signal.signal(number, _nothing)
        signal.set_wakeup_fd(self._tell.fileno(), warn_on_full_buffer=False)

    def watch(self, watched: socket.socket) -> None:
        """Wake when there is something to read."""
        self._poll.register(watched, select.POLLIN)

    def unwatch(self, watched: socket.socket) -> None:
        """No more; fine if it is not watched."""
        try:
            self._poll.unregister(watched)
        except KeyError:
            return

    def wait(self, seconds: float | None) -> tuple[set[int], set[int]]:
        """Signals that came, and descriptors that can be read; none of both after `seconds`."""
        ready = {fd for fd, _ in self._poll.poll(None if seconds is None else seconds * 1000)}
        if self._told.fileno() not in ready:
            return set(), ready
        ready.discard(self._told.fileno())
        try:
            return set(self._told.recv(_SIGNALS_MAX)), ready
        except BlockingIOError:
            return set(), ready

    @contextmanager
    def held(self) -> Generator[None]:
        """Signals wait meanwhile: a child that is being made must not take its parent's."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def reset(self) -> None:
        """In a child, within `held`: signals are what they are in a new process."""
        signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)
        self._told.close()
        self._tell.close()


def _nothing(*_: object) -> None:
    # A signal without a handler would not be written to the descriptor.
    return
