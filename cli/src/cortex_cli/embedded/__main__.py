"""Only the three servers, for tests and debugging: `python -m cortex_cli.embedded --home DIR`.

Prints one JSON line when they are up (`postgres`, `nats`, `redis`: URLs with their passwords; `pids`), stays
until SIGTERM or SIGINT, and obeys lines on its standard input meanwhile: `restart NAME`, `empty NAME` (it
comes back with no data), `wait NAME PID` (until
it is up with another pid). Each is answered by one JSON line: `{"ok": ...}`
with the pids, or `{"error": ...}`. Events and errors go to standard error.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
from pathlib import Path

from cortex_shared.errors import Conflict, CortexError

from cortex_cli.embedded.child import Event
from cortex_cli.embedded.diagnose import PORT_TAKEN
from cortex_cli.embedded.layout import Home
from cortex_cli.embedded.lock import UpLock
from cortex_cli.embedded.process import end_orphans
from cortex_cli.embedded.servers import NAMES, Servers
from cortex_cli.embedded.supervisor import Supervisor

_USER = "cortex"
_REPLACED_SECONDS_MAX = 60
_PORT_ATTEMPTS_MAX = 5


def main() -> int:
    """Exit status 0 after a clean stop, 1 when the servers could not be started (the error on stderr)."""
    arguments = _parser().parse_args()
    try:
        asyncio.run(_serve(arguments))
    except CortexError as error:
        print(json.dumps(error.body()), file=sys.stderr)
        return 1
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    home = Home(arguments.home)
    home.create()
    lock = await UpLock(home.up_lock).acquire()
    await end_orphans(home.run)
    _on_signal(lock)
    with contextlib.suppress(asyncio.CancelledError):
        # Test runs side by side look for a free port at the same moment: the loser chooses again.
        for attempts_left in reversed(range(_PORT_ATTEMPTS_MAX)):
            try:
                await _run(home, arguments)
            except Conflict as error:
                if error.code != PORT_TAKEN or arguments.nats_port is not None or not attempts_left:
                    raise
    lock.release()


async def _run(home: Home, arguments: argparse.Namespace) -> None:
    password = home.secret("nats")
    plain = f'authorization {{ user: "{_USER}", password: "{password}" }}'
    servers = Servers(
        home,
        nats_authority=arguments.nats_authority.read_text() if arguments.nats_authority else plain,
        nats_port=arguments.nats_port,
        careless=arguments.careless,
    )
    user = "" if arguments.nats_authority else f"{_USER}:{password}@"
    urls = {
        "postgres": servers.postgres.url(),
        "nats": servers.nats.url().replace("//", f"//{user}"),
        "redis": servers.redis.url(),
    }
    async with Supervisor(home, await servers.children(), _tell) as supervisor:
        await supervisor.start()
        _say(urls | {"pids": _pids(supervisor)})
        await _obey(servers, supervisor)


def _on_signal(lock: UpLock) -> None:
    """SIGTERM and SIGINT end this task, once: leaving the supervisor's block then stops all in order."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    called = False

    def end() -> None:
        nonlocal called
        if not called:
            called = True
            lock.draining()
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)


async def _obey(servers: Servers, supervisor: Supervisor) -> None:
    """Read orders until cancelled; the end of the input ends nothing."""
    kind = os.fstat(sys.stdin.fileno()).st_mode
    orders = asyncio.StreamReader()
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):  # nobody orders from /dev/null or a terminal
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    else:
        orders.feed_eof()
    while line := await orders.readline():
        verb, name, *rest = [*line.decode().split(), "", ""]
        try:
            if verb == "restart":
                await supervisor.restart(name)
            elif verb == "empty" and name in NAMES:
                await supervisor.restart(name, servers.empty(name))
            elif verb == "wait":
                await _until_replaced(supervisor, name, int(rest[0]))
            else:
                raise ValueError(f"unknown order: {line!r}")
        except (CortexError, OSError, ValueError) as error:
            _say({"error": str(error)})
        else:
            _say({"ok": name, "pids": _pids(supervisor)})
    await asyncio.Event().wait()


async def _until_replaced(supervisor: Supervisor, name: str, pid: int) -> None:
    async with asyncio.timeout(_REPLACED_SECONDS_MAX):
        while supervisor.pid(name) in (pid, None):  # noqa: ASYNC110 (a tool for tests: no event is worth it)
            await asyncio.sleep(0.01)
        await supervisor.wait_ready(name)


def _pids(supervisor: Supervisor) -> dict[str, int | None]:
    return {name: supervisor.pid(name) for name in NAMES}


def _say(content: object) -> None:
    print(json.dumps(content), flush=True)


def _tell(event: Event) -> None:
    detail = f": {event.detail}" if event.detail else ""
    text = f"{event.name} {event.happening} (pid {event.pid}, {event.seconds:.2f} s){detail}"
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cortex_cli.embedded", description="The embedded servers alone."
    )
    parser.add_argument("--home", type=Path, required=True, help="the folder that holds everything")
    parser.add_argument("--nats-port", type=int, default=None, help="default: 4222, or the next free one")
    parser.add_argument(
        "--nats-authority", type=Path, default=None, help="who may use NATS (default: one user, in the URL)"
    )
    parser.add_argument("--careless", action="store_true", help="no fsync: faster, for tests only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
