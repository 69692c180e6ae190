"""Workers: several gateway processes on one port, and the small parent that keeps them there.

The parent imports everything, opens no connection, runs no loop and no thread, and forks: a worker that died
is back within the time that opening its connections takes, with the code and the memory of the others. Each
worker has listening sockets of its own, which the parent keeps open, so that connections that wait on a dead
worker's socket are served by its successor. At rest the parent waits in one system call.
"""

import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn, Protocol

import structlog
from cortex_shared.errors import Conflict, CortexError
from cortex_shared.logs import get_logger
from cortex_shared.process import Task, run

from cortex_gateway.host_limits import MESSAGE_MAX_BYTES, Desk, HostLimits
from cortex_gateway.listening import Listener, close
from cortex_gateway.settings import Settings
from cortex_gateway.siblings import Places
from cortex_gateway.waking import Waking
from cortex_gateway.worker import CHANGED, CUT, LIMITS, STOP, Worker

_log = get_logger("workers")

_SIGNALS = (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
# Who lives for so long is no crash loop's. Who does not is back at once so often, then after 1 s, 2 s, 4 s.
_STABLE_SECONDS = 10.0
_AT_ONCE_MAX = 3
_BACKOFF_MAX_SECONDS = 30.0
# So long connections may wait on the socket of a worker that is to come; for longer the others get them.
_WAIT_SECONDS = 1.0
# After the drain: closing journal and connections. Who is not done then is stuck.
_KILL_SECONDS = 10.0


class Source(Protocol):
    """The routes file, as the parent watches it."""

    @property
    def content(self) -> bytes:
        """The newest content that was found good."""
        ...

    @property
    def period_seconds(self) -> float:
        """How often to look."""
        ...

    def due(self) -> bool:
        """Whether the file is to be read."""
        ...

    def reread(self) -> bool:
        """Read it; whether there is new good content."""
        ...


class _Seat:
    """One worker's place: its sockets stay, the process changes."""

    def __init__(self, place: int, sockets: list[socket.socket]) -> None:
        self.place = place
        self.sockets = sockets
        self.pid = 0
        self.control: socket.socket | None = None
        self.started_at = 0.0
        self.failures = 0
        self.start_at: float | None = None


class Parent:
    """Starts workers and keeps them. Times are of the monotonic clock, in seconds."""

    def __init__(
        self,
        count: int,
        listener: Listener,
        serve: Callable[[Worker], None],
        *,
        drain_seconds: float,
        affinity_max_bytes: int,
        source: Source | None = None,
    ) -> None:
        """`serve` is called in each child and runs until its worker is to end. Raises Conflict, OSError."""
        self._listener = listener
        self._serve = serve
        self._drain_seconds = drain_seconds
        self._source = source
        self._places = Places(count, affinity_max_bytes)
        self._seats = [_Seat(place, listener.open()) for place in range(count)]
        self._desk = Desk()
        self._waking = Waking(_SIGNALS)
        self._kill_at: float | None = None
        self._look_at = 0.0
        self._settled_at = time.monotonic() + _STABLE_SECONDS
        self._status = 0

    def run(self) -> int:
        """Until SIGTERM or SIGINT, and then until all workers have ended; the status to exit with."""
        # What is there now never becomes garbage, and collecting would copy its pages into each worker.
        gc.collect()
        gc.freeze()
        self._start_due(time.monotonic(), first=True)
        _log.info("workers.started", workers=len(self._seats), port=self._listener.port)
        while self._kill_at is None or any(seat.pid for seat in self._seats):
            signals, readable = self._waking.wait(self._due(time.monotonic()))
            now = time.monotonic()
            if signals & {signal.SIGINT, signal.SIGTERM}:
                self._stop(now)
            for seat in self._seats:
                if seat.control is not None and seat.control.fileno() in readable:
                    self._hear(seat, seat.control)
            self._reap(now)
            if self._kill_at is None:
                self._look(now, asked=signal.SIGHUP in signals)
                self._start_due(now)
            elif now >= self._kill_at:
                self._kill()
        return self._status

    def _due(self, now: float) -> float | None:
        # Seconds until there is anything to do by itself.
        due = [seat.start_at for seat in self._seats if seat.start_at is not None]
        if self._kill_at is not None:
            due = [self._kill_at]
        elif self._source is not None:
            due.append(self._look_at)
        return max(0.0, min(due) - now) if due else None

    def _hear(self, seat: _Seat, control: socket.socket) -> None:
        try:
            message = control.recv(MESSAGE_MAX_BYTES)
            if message[:1] == LIMITS:
                control.send(LIMITS + self._desk.answer(seat.place, message[1:]))
            elif not message:
                self._waking.unwatch(control)  # it has ended: waitpid will say so
        except BlockingIOError:
            _log.error("worker.deaf", worker=seat.place)
        except OSError:
            self._waking.unwatch(control)
        except ValueError as error:
            _log.error("worker.bug", worker=seat.place, error=str(error))

    def _start_due(self, now: float, *, first: bool = False) -> None:
        for seat in self._seats:
            if first or (seat.start_at is not None and seat.start_at <= now):
                seat.start_at = None
                if self._has_sockets(seat, now):
                    self._fork(seat, now)

    def _has_sockets(self, seat: _Seat, now: float) -> bool:
        if seat.sockets:
            return True
        try:
            seat.sockets = self._listener.open()
        except Conflict as error:
            # None of ours was left on the port, and another program took it.
            _log.error("worker.no_port", worker=seat.place, error=error.message, remedy=error.remedy)
            seat.start_at = now + _BACKOFF_MAX_SECONDS
            return False
        return True

    def _fork(self, seat: _Seat, now: float) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        sys.stdout.flush()
        sys.stderr.flush()
        with self._waking.held():
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._be(seat, theirs)
        theirs.close()
        self._waking.watch(ours)
        seat.pid, seat.control, seat.started_at = pid, ours, now

    def _be(self, seat: _Seat, control: socket.socket) -> NoReturn:
        # The child. It never returns into what the parent was doing.
        status = 1
        try:
            for other in self._seats:
                if other.control is not None:
                    other.control.close()
                if other is not seat:
                    close(other.sockets)
            self._waking.reset()
            # A terminal's Ctrl-C and hang-up reach all of its processes: the parent tells what to do.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            structlog.contextvars.bind_contextvars(worker=seat.place)
            content = self._source.content if self._source is not None else b""
            limits = HostLimits(control, LIMITS, seat.place, len(self._seats), self._desk.epoch_ms)
            self._serve(Worker(seat.place, seat.sockets, control, self._places, limits, content))
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except CortexError as error:
            _log.error("worker.failed", error=error.message, remedy=error.remedy)
        except BaseException:  # noqa: BLE001 (the edge of the process: what ended it is told, whatever it was)
            _log.exception("worker.failed")
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _reap(self, now: float) -> None:
        while True:
            try:
                pid, waited = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for seat in self._seats:
                if seat.pid == pid:
                    self._ended(seat, os.waitstatus_to_exitcode(waited), now)

    def _ended(self, seat: _Seat, status: int, now: float) -> None:
        seat.pid = 0
        if seat.control is not None:
            self._waking.unwatch(seat.control)
            seat.control.close()
            seat.control = None
        self._desk.left(seat.place)
        if self._kill_at is not None:
            self._status = self._status or (1 if status else 0)
            return
        lived = now - seat.started_at
        _log.warning("worker.ended", worker=seat.place, status=status, seconds=round(lived, 3))
        if status > 0 and now < self._settled_at:
            # It ended by itself, right after the start: trying again would only hide what is wrong.
            self._status = status
            self._stop(now)
            return
        seat.failures = 0 if lived >= _STABLE_SECONDS else seat.failures + 1
        late = seat.failures - _AT_ONCE_MAX
        wait = min(_BACKOFF_MAX_SECONDS, 2.0 ** (late - 1)) if late > 0 else 0.0
        seat.start_at = now + wait
        if wait > _WAIT_SECONDS and any(other.pid for other in self._seats):
            close(seat.sockets)

    def _look(self, now: float, *, asked: bool) -> None:
        source = self._source
        if source is None or not (asked or now >= self._look_at):
            return
        changed = (source.due() or asked) and source.reread()
        self._look_at = time.monotonic() + source.period_seconds
        if changed:
            descriptor = os.memfd_create("routes", os.MFD_CLOEXEC)
            with os.fdopen(descriptor, "wb") as file:
                file.write(source.content)
                file.flush()
                self._tell(CHANGED, [descriptor])

    def _tell(self, word: bytes, descriptors: list[int]) -> None:
        for seat in self._seats:
            if seat.control is None:
                continue
            try:
                socket.send_fds(seat.control, [word], descriptors)
            except BlockingIOError:
                _log.error("worker.deaf", worker=seat.place)
            except OSError:
                continue  # it has just died

    def _stop(self, now: float) -> None:
        if self._kill_at is None:
            self._kill_at = now + self._drain_seconds + _KILL_SECONDS
            for seat in self._seats:
                close(seat.sockets)
            self._tell(STOP, [])
        else:
            self._tell(CUT, [])

    def _kill(self) -> None:
        for seat in self._seats:
            if seat.pid:
                _log.error("worker.killed", worker=seat.place)
                os.kill(seat.pid, signal.SIGKILL)
        self._kill_at = time.monotonic() + _KILL_SECONDS


def serve(
    settings: Settings, single: Task, work: Callable[[Worker], None], source: Source | None = None
) -> int:
    """Serve in this process if it is to be one, else in workers; the status to exit with. Raises Conflict."""
    http = settings.http
    count = http.workers or len(os.sched_getaffinity(0))
    # Also for one process, to say in plain words who has the port.
    listener = Listener(http.host, http.port)
    if count == 1:
        run(single)
        return 0
    parent = Parent(
        count,
        listener,
        work,
        drain_seconds=http.drain_seconds,
        affinity_max_bytes=settings.upstream.affinity_max_bytes,
        source=source,
    )
    return parent.run()
