"""The life of `cortex up`: lock, servers, services, first key, waiting, orderly end."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cortex_shared.errors import Conflict, CortexError, Unavailable

from cortex_cli.access import Access, read_access
from cortex_cli.embedded.diagnose import PORT_TAKEN
from cortex_cli.embedded.layout import Home
from cortex_cli.embedded.lock import UpLock
from cortex_cli.embedded.process import end_orphans
from cortex_cli.embedded.servers import Servers
from cortex_cli.embedded.supervisor import Supervisor
from cortex_cli.exit_codes import ExitCode, exit_code
from cortex_cli.settings import CliSettings
from cortex_cli.up import addresses, identity
from cortex_cli.up.addresses import LOOPBACK, Addresses
from cortex_cli.up.console import Console
from cortex_cli.up.engines import stop_engines
from cortex_cli.up.first_key import usable_key
from cortex_cli.up.http import is_ready
from cortex_cli.up.services import Services

_READY_SECONDS_MAX = 120.0
_LOOK_SECONDS = 0.03
_PORT_ATTEMPTS_MAX = 3
_DRAIN_SECONDS_MAX = 120.0
"""So long an `up` waits for an earlier one that is stopping its models."""

type WhenReady = Callable[[Access], Awaitable[None]]


async def _nothing(_access: Access) -> None:
    """For those who want nothing more."""


def _nothing_yet() -> None:
    """The same, at the beginning."""


@dataclass(slots=True)
class Up:
    """One `cortex up`. `ports` are explicit ones: `gateway`, `api`.

    `when_up` is called once this home is ours and nothing runs yet; `when_ready` runs once all is up,
    beside the system, and is cancelled with it.
    """

    home: Home
    settings: CliSettings
    console: Console
    listen: str = LOOPBACK
    ports: dict[str, int] = field(default_factory=dict[str, int])
    detached: bool = False
    when_up: Callable[[], None] = _nothing_yet
    when_ready: WhenReady = _nothing
    _lock: UpLock | None = None
    _supervisor: Supervisor | None = None
    _stopping_since: float | None = None

    async def run(self) -> None:
        """Until SIGINT, SIGTERM or SIGHUP. Raises CortexError when it cannot come up."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupt, task)
        try:
            await self._run_locked()
        except asyncio.CancelledError:
            if self._stopping_since is None:
                raise
            task.uncancel()
            self.console.stopped(loop.time() - self._stopping_since)

    def _interrupt(self, task: asyncio.Task[None]) -> None:
        if self._stopping_since is None:
            self._stopping_since = asyncio.get_running_loop().time()
            if self._lock is not None:
                self._lock.draining()
            task.cancel()
            self.console.stopping()
        elif self._supervisor is not None:
            self._hurry(self._supervisor)

    def _hurry(self, supervisor: Supervisor) -> None:
        """A second signal: services cut their open requests short (see cortex_shared.process.serve)."""
        for name in ("gateway", "api"):
            pid = supervisor.pid(name)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    async def _run_locked(self) -> None:
        self.home.create()
        lock = await UpLock(self.home.up_lock).acquire(drain_seconds=_DRAIN_SECONDS_MAX)
        self._lock = lock
        try:
            self.console.opening(self.home.path)
            self.when_up()
            await end_orphans(self.home.run)
            await self._run_on_free_ports()
        finally:
            self._lock = None
            lock.release()

    async def _run_on_free_ports(self) -> None:
        """A port that was free a moment ago may be taken by now: a default one is chosen again."""
        for attempts_left in reversed(range(_PORT_ATTEMPTS_MAX)):
            where = addresses.choose(self.home, self.listen, self.ports)
            for text in where.moved:
                self.console.say(f"  {text}")
            try:
                return await self._run_system(where)
            except Conflict as error:
                if error.code != PORT_TAKEN or not attempts_left:
                    raise

    async def _run_system(self, where: Addresses) -> None:
        node = identity.node_name(self.home)
        files = await identity.nats_files(self.home, node)
        host = LOOPBACK if self.listen in ("", "localhost") else self.listen
        servers = Servers(self.home, nats_authority=files.server.read_text(), nats_host=host)
        services = Services(self.home, self.settings, servers, where, files)
        children = [*await servers.children(), *services.children()]
        try:
            async with Supervisor(self.home, children, self.console.event) as supervisor:
                self._supervisor = supervisor
                try:
                    await supervisor.start()
                    await self._serve(where)
                finally:
                    if self._lock is not None:
                        self._lock.draining()
        finally:
            self._supervisor = None
            await stop_engines(self.home.node(node), self.settings)

    async def _serve(self, where: Addresses) -> None:
        self.console.all_up()
        await self._until_ready(where)
        addresses.remember(self.home, where)
        before = read_access(self.home.access_file)
        access = Access(
            gateway_url=where.url("gateway"),
            api_url=where.url("api"),
            admin_token=before.admin_token or identity.admin_token(self.home),
            api_key=before.api_key,
        )
        access.write(self.home.access_file)
        access = await usable_key(access, where)
        access.write(self.home.access_file)
        first = before.admin_token is None
        self.console.ready(access, first=first, detached=self.detached, home=self.home.path)
        if self.detached:
            self._to_log()
        await self.when_ready(access)
        await asyncio.Event().wait()

    async def _until_ready(self, where: Addresses) -> None:
        """API and gateway answer 200 at /readyz: what they need is there, too."""
        for name in ("api", "gateway"):
            try:
                async with asyncio.timeout(_READY_SECONDS_MAX):
                    while not await _answers(where, name):  # noqa: ASYNC110 (another process's state)
                        await asyncio.sleep(_LOOK_SECONDS)
            except TimeoutError:
                raise Unavailable(
                    f"The {name} runs, but was not ready within {_READY_SECONDS_MAX:.0f} s.",
                    code="up.not_ready",
                    remedy=f"See {self.home.log(name)}.",
                ) from None

    def _to_log(self) -> None:
        """From here on nobody watches: words go to the log, and whoever waited for the start may leave."""
        log = os.open(self.home.log("up"), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)


async def _answers(where: Addresses, name: str) -> bool:
    try:
        return await is_ready(where.reach(name), where.ports[name], "/readyz")
    except OSError:
        return False


async def live(up: Up) -> int:
    """Run it and turn what goes wrong into words and an exit code."""
    try:
        await up.run()
    except CortexError as error:
        up.console.error(error)
        # It is this machine that failed, not one that could not be reached.
        return ExitCode.failed if isinstance(error, Unavailable) else exit_code(error)
    return ExitCode.ok
