"""The runner: starts one engine, outlives the agent, keeps the engine's log, and writes down how it ended.

Run by path, `python -I -S runner.py`, with its orders on standard input (see `Orders` in process.py).
One such process stays for every engine, so it imports nothing but what is built in or as good as: the
`signal` module alone (for its enumerations) would cost 4 ms of every start and 1 MiB for as long as it runs.

    standard input   marshal of a dict: name, argv, env, cwd, run, log_dir, log_file_bytes_max, log_files_max,
                     grace_seconds, record (a path), head (JSON text that lacks its closing brace)
                     (at its end without any, the agent has gone: so do we)
    standard output  one line: "ok PID START_TICKS", or "error ERRNO WHAT"; then it is closed
    the record       head + who runs, and later how it ended; replaced atomically
    SIGTERM          stop: SIGTERM to the engine's group, SIGKILL after the grace; SIGUSR1: SIGKILL now
"""

import _signal  # pyright: ignore[reportMissingImports] (built in, but without stubs)
import errno
import fcntl
import marshal
import os
import select
import sys
import time

SIGKILL, SIGTERM, SIGUSR1 = 9, 15, 10
PR_SET_PDEATHSIG = 1
READ_BYTES = 65_536
PIPE_BYTES_MAX = 1 << 20
# Room in the record for what is added to its head later, so that its end can be written on a full disk.
RECORD_ROOM_BYTES = 512
LEFTOVER_SECONDS = 5.0


class Log:
    """A log in files named by the offset of their first byte in the whole log; the oldest are removed."""

    def __init__(self, folder: str, file_bytes_max: int, files_max: int) -> None:
        self.folder = folder
        self.file_bytes_max = file_bytes_max
        self.files_max = files_max
        self.lost_bytes = 0
        self.fd = -1
        names = self.names()
        self.base = int(names[-1][:-4]) if names else 0
        try:
            self.size = os.stat(self.path()).st_size if names else 0
        except OSError:
            self.size = 0
        self.start = self.base + self.size

    def names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.folder) if name.endswith(".log"))
        except OSError:
            return []

    def path(self) -> str:
        return f"{self.folder}/{self.base:020d}.log"

    def write(self, data: bytes) -> None:
        """Append; what a full disk refuses is counted and left out, for the engine must go on."""
        try:
            if self.lost_bytes:
                note = f"\n[cortex: {self.lost_bytes} bytes of log were lost: the disk was full]\n"
                self._append(note.encode())
                self.lost_bytes = 0
            self._append(data)
        except OSError:
            self.lost_bytes += len(data)

    def _append(self, data: bytes) -> None:
        while data:
            if self.fd < 0 or self.size >= self.file_bytes_max:
                self._turn()
            written = os.write(self.fd, data[: self.file_bytes_max - self.size])
            self.size += written
            data = data[written:]

    def _turn(self) -> None:
        if self.size >= self.file_bytes_max:
            self.base, self.size = self.base + self.size, 0
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1
        self.fd = os.open(self.path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for name in self.names()[: -self.files_max]:
            os.unlink(f"{self.folder}/{name}")


def stat_fields(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the state on (proc(5)); None when there is no such process."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()
    except OSError:
        return None
    finally:
        os.close(fd)


def ticks_of(pid: int) -> int:
    """When it was started, in clock ticks since boot; 0 when there is no such process."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


def leftovers(session: int, run: str) -> list[int]:
    """Processes of the engine's session, and those that carry its mark in their environment."""
    mark = f"CORTEX_RUN={run}".encode()
    found: list[int] = []
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        fields = stat_fields(pid)
        if fields is None or fields[0] in (b"Z", b"X") or pid == os.getpid():
            continue
        if int(fields[3]) == session or mark in environment(pid):
            found.append(pid)
    return found


def environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def kill_leftovers(session: int, run: str) -> None:
    """SIGKILL whatever is left of the engine (vLLM leaves workers behind), until nothing is."""
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while time.monotonic() < deadline:
        found = leftovers(session, run)
        if not found:
            return
        for pid in found:
            send(pid, SIGKILL)
        time.sleep(0.01)


def send(pid: int, number: int) -> None:
    try:  # noqa: SIM105 (contextlib would cost 2 ms of every start)
        os.kill(pid, number)
    except OSError:
        pass


def spawn(argv: list[str], env: dict[str, str], cwd: str, output: int) -> int:
    """Start the engine in a session of its own; returns its pid. OSError: it cannot be executed."""
    told, telling = os.pipe()
    runner = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            # The engine must not run on unseen when its runner is killed.
            import ctypes

            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
            if os.getppid() != runner:
                os._exit(125)
            null = os.open("/dev/null", os.O_RDONLY)
            for source, target in ((null, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            for number in range(1, 32):
                if number not in (SIGKILL, 19):  # SIGSTOP
                    _signal.signal(number, _signal.SIG_DFL)
            os.chdir(cwd)
            os.execve(argv[0], argv, env)
        except OSError as error:
            os.write(telling, str(error.errno).encode())
        finally:
            os._exit(127)
    os.close(telling)
    failed = os.read(told, 16)
    os.close(told)
    if failed:
        os.waitpid(pid, 0)
        raise OSError(int(failed), "not executed", argv[0])
    return pid


def json(value: object) -> str:
    """A number, a truth or nothing as JSON."""
    return "null" if value is None else str(value).lower()


class Record:
    """The JSON file that says who runs and how it ended. Its length never changes."""

    def __init__(self, path: str, head: str) -> None:
        self.path = path
        self.head = head.encode()

    def write(self, values: dict[str, object]) -> None:
        """Replace it; with no room for another file, write over the one there is."""
        text = "".join(f', "{name}": {json(value)}' for name, value in values.items()) + "}"
        data = self.head + text.encode().ljust(RECORD_ROOM_BYTES)
        try:
            fresh = self.path + ".new"
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                if os.write(fd, data) != len(data):
                    raise OSError(errno.ENOSPC, "disk full", fresh)
            finally:
                os.close(fd)
            os.rename(fresh, self.path)
        except OSError:
            if "pid" not in values:
                raise
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            os.pwrite(fd, data, 0)
            os.close(fd)


class Watch:
    """Waits for output, for signals and for the end of the engine."""

    def __init__(self, pid: int, output: int, signals: int, log: Log, grace_seconds: float) -> None:
        self.pid = pid
        self.output = output
        self.signals = signals
        self.log = log
        self.grace_seconds = grace_seconds
        self.deadline: float | None = None
        self.asked = False

    def until_end(self) -> None:
        pidfd = os.pidfd_open(self.pid)
        poll = select.poll()
        for fd in (self.output, self.signals, pidfd):
            poll.register(fd, select.POLLIN)
        while True:
            wait = None
            if self.deadline is not None:
                wait = max(0.0, (self.deadline - time.monotonic()) * 1000)
            ready = dict(poll.poll(wait))
            if self.output in ready and not self.copy():
                poll.unregister(self.output)
            if self.signals in ready:
                for number in os.read(self.signals, 64):
                    self.signalled(number)
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.kill_group(SIGKILL)
                self.deadline = None
            if pidfd in ready:
                os.close(pidfd)
                return

    def copy(self) -> bool:
        """Move what there is from the pipe to the log; False at its end."""
        try:
            data = os.read(self.output, READ_BYTES)
        except BlockingIOError:
            return True
        if data:
            self.log.write(data)
        return bool(data)

    def drain(self) -> None:
        """The last words: what is in the pipe when everything that could write to it is gone.

        Not more than a pipe holds at most: something may have got away, and write on.
        """
        for _ in range(PIPE_BYTES_MAX // READ_BYTES):
            try:
                data = os.read(self.output, READ_BYTES)
            except OSError:
                return
            if not data:
                return
            self.log.write(data)

    def signalled(self, number: int) -> None:
        if number == SIGUSR1:
            self.asked = True
            self.kill_group(SIGKILL)
        elif number == SIGTERM and not self.asked:
            self.asked = True
            self.deadline = time.monotonic() + self.grace_seconds
            self.kill_group(SIGTERM)

    def kill_group(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except OSError:
            send(self.pid, number)


def nothing(_number: int, _frame: object) -> None:
    """The number arrives through the pipe."""


def listen_for_signals() -> int:
    reader, writer = os.pipe()
    for fd in (reader, writer):
        os.set_blocking(fd, False)
    _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (SIGTERM, SIGUSR1):
        _signal.signal(number, nothing)
    for number in (1, 2):  # a terminal's hang-up and Ctrl-C are the agent's business
        _signal.signal(number, _signal.SIG_IGN)
    return reader


def rename(name: str) -> None:
    """What ps shows: all runners have the same command line."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(name[-15:])
    except OSError:
        pass  # only a name


def hold(folder: str) -> None:
    """Be the only runner of the instance, until we end: OSError (EAGAIN) if there is one.

    Orders may be read late, when the agent that gave them has died and another has given its own.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(errno.EAGAIN, "another runner holds it", folder) from error
    except OSError:
        pass  # a file system without locks


def say(text: str) -> None:
    try:  # noqa: SIM105 (as above)
        os.write(1, text.encode())
    except OSError:
        pass  # the agent went away; it finds the record when it comes back
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def main() -> None:
    told = sys.stdin.buffer.read()
    if not told:
        return
    orders = marshal.loads(told)
    rename(orders["name"])
    signals = listen_for_signals()
    log = Log(orders["log_dir"], orders["log_file_bytes_max"], orders["log_files_max"])
    who: dict[str, object] = {
        "runner_pid": os.getpid(),
        "runner_ticks": ticks_of(os.getpid()),
        "log_start": log.start,
    }
    record = Record(orders["record"], orders["head"])
    output, writing = os.pipe()
    os.set_blocking(output, False)
    try:
        hold(os.path.dirname(orders["record"]))
        # Before the engine: one that could not be written down would be lost to the next agent.
        record.write(who)
        pid = spawn(orders["argv"], orders["env"], orders["cwd"], writing)
    except OSError as error:
        say(f"error {error.errno} {error.filename}\n")
        return
    os.close(writing)
    who |= {"pid": pid, "ticks": ticks_of(pid), "started_at": time.time()}
    record.write(who)
    say(f"ok {pid} {who['ticks']}\n")
    run, grace_seconds = orders["run"], orders["grace_seconds"]
    del told
    orders.clear()  # they held secrets
    watch = Watch(pid, output, signals, log, grace_seconds)
    watch.until_end()
    # Before it is reaped: until then no other session can have its number.
    kill_leftovers(pid, run)
    watch.drain()
    status = os.waitpid(pid, 0)[1]
    code, number = os.waitstatus_to_exitcode(status), None
    if code < 0:
        code, number = None, -code
    ended: dict[str, object] = {
        "status": code,
        "signal": number,
        "asked": watch.asked,
        "ended_at": time.time(),
    }
    record.write(who | ended)


if __name__ == "__main__":
    main()
