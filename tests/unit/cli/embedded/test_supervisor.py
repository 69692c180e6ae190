"""The supervisor, with small programs as its children."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cortex_cli.embedded import supervisor as supervisor_module
from cortex_cli.embedded.child import Child, Event, Happening
from cortex_cli.embedded.layout import Home, read_json
from cortex_cli.embedded.supervisor import Supervisor
from cortex_shared.errors import Conflict, CortexError, InvalidInput, NotFound, Unavailable
from cortex_shared.procfs import start_ticks

PATIENCE_SECONDS = 20


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    home = Home(tmp_path / "home")
    home.create()
    return home


class Told:
    """What the supervisor told, in order, and a way to wait for it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._new = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._new.set()

    def count(self, happening: Happening, name: str) -> int:
        return sum((event.happening, event.name) == (happening, name) for event in self.events)

    async def until(self, happening: Happening, name: str, times: int = 1) -> Event:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.count(happening, name) < times:
                self._new.clear()
                await self._new.wait()
        return [event for event in self.events if (event.happening, event.name) == (happening, name)][-1]


def shell(home: Home, name: str, script: str, **more: Any) -> Child:
    """A child that runs a shell script."""
    return Child(name, ("/bin/sh", "-c", script), {"PATH": "/usr/bin:/bin"}, home.path, **more)


def file_appears(path: Path) -> Callable[[], Awaitable[bool]]:
    """Readiness: the file is there."""

    async def ready() -> bool:
        return path.exists()

    return ready


async def test_starts_in_order_and_stops_in_reverse(home: Home) -> None:
    told = Told()
    made = home.path / "made"
    children = [
        shell(home, "third", "exec sleep 60", after=("first", "second")),
        shell(home, "second", "exec sleep 60", after=("first",)),
        shell(home, "first", f"sleep 0.1; touch {made}; exec sleep 60", ready=file_appears(made)),
    ]
    async with Supervisor(home, children, told) as supervisor:
        await supervisor.start()
        assert [e.name for e in told.events if e.happening == Happening.ready] == ["first", "second", "third"]
        assert supervisor.is_ready("third")
    assert [e.name for e in told.events if e.happening == Happening.stopped] == ["third", "second", "first"]


async def test_the_environment_is_exactly_what_was_given(home: Home) -> None:
    given = {"LC_ALL": "C.UTF-8", "ONLY": "this"}
    child = Child("env", ("/usr/bin/env",), given, home.path, ready=file_appears(home.path / "never"))
    async with Supervisor(home, [child], Told()) as supervisor:
        with pytest.raises(Unavailable):  # it ends at once, each time
            await supervisor.start()
    assert set(home.log("env").read_text().split()) == {f"{key}={value}" for key, value in given.items()}


async def test_one_that_dies_is_brought_back(home: Home) -> None:
    told = Told()
    async with Supervisor(home, [shell(home, "a", "exec sleep 60")], told) as supervisor:
        await supervisor.start()
        for times in (1, 2):
            pid = supervisor.pid("a")
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            back = await told.until(Happening.restarted, "a", times)
            assert back.pid not in (None, pid)
        died = await told.until(Happening.died, "a")
        assert "SIGKILL" in died.detail


async def test_one_that_dies_is_brought_back_without_pidfds(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pidfd_open(pid: int, flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    told = Told()
    async with Supervisor(home, [shell(home, "a", "exec sleep 60")], told) as supervisor:
        await supervisor.start()
        os.kill(supervisor.pid("a") or 0, signal.SIGKILL)
        await told.until(Happening.restarted, "a")
    assert told.count(Happening.stopped, "a") == 1


async def test_deaths_in_a_row_are_answered_more_and_more_slowly(home: Home) -> None:
    told = Told()
    async with Supervisor(home, [shell(home, "a", "exit 1")], told) as supervisor:
        await supervisor.start()  # called ready as soon as it runs: it dies after its start, not during
        await told.until(Happening.died, "a", 4)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await told.until(Happening.died, "a", 5)
        assert loop.time() - began > 1.5  # 0, 0.5, 1, 2 s


async def test_the_rest_of_a_dead_childs_group_is_killed(home: Home) -> None:
    told = Told()
    pids = home.path / "pids"
    async with Supervisor(
        home, [shell(home, "a", f"sleep 60 & echo $! >> {pids}; wait")], told
    ) as supervisor:
        await supervisor.start()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not pids.exists() or not pids.read_text().strip():
                await asyncio.sleep(0.01)
        left_behind = int(pids.read_text().split()[0])
        os.kill(supervisor.pid("a") or 0, signal.SIGKILL)
        await told.until(Happening.restarted, "a")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while start_ticks(left_behind) is not None:
                await asyncio.sleep(0.01)


async def test_a_child_that_keeps_dying_fails_the_start_with_its_last_words(home: Home) -> None:
    told = Told()
    children = [
        shell(home, "good", "exec sleep 60"),
        shell(home, "bad", "echo it hurts; exit 3", ready=file_appears(home.path / "never")),
    ]
    async with Supervisor(home, children, told) as supervisor:
        with pytest.raises(Unavailable) as caught:
            await supervisor.start()
        assert "it hurts" in caught.value.message
        assert "status 3" in caught.value.message
        assert supervisor.pid("good") is None
    assert told.count(Happening.died, "bad") == 3
    assert told.count(Happening.stopped, "good") == 1


async def test_a_program_that_is_not_there_fails_the_start(home: Home) -> None:
    child = Child("x", ("/no/such/program",), {}, home.path, ready=file_appears(home.path / "never"))
    async with Supervisor(home, [child], Told()) as supervisor:
        with pytest.raises(CortexError, match="/no/such/program"):
            await supervisor.start()


async def test_an_error_of_the_preparation_fails_the_start_as_it_is(home: Home) -> None:
    async def prepare() -> None:
        raise Conflict("the data are of another version", code="x.y")

    async with Supervisor(home, [shell(home, "a", "exec sleep 60", prepare=prepare)], Told()) as supervisor:
        with pytest.raises(Conflict, match="another version"):
            await supervisor.start()


async def test_one_that_does_not_become_ready_fails_the_start(home: Home) -> None:
    child = shell(home, "a", "exec sleep 60", ready=file_appears(home.path / "never"), start_seconds=0.1)
    async with Supervisor(home, [child], Told()) as supervisor:
        with pytest.raises(Unavailable, match="not ready within"):
            await supervisor.start()


async def test_one_that_ignores_the_signal_is_killed(home: Home) -> None:
    told = Told()
    made = home.path / "made"
    script = f"trap '' TERM; touch {made}; while :; do sleep 1; done"
    child = shell(home, "deaf", script, ready=file_appears(made), stop_seconds=0.1)
    async with Supervisor(home, [child], told) as supervisor:
        await supervisor.start()
        pid = supervisor.pid("deaf")
        assert pid is not None
    assert start_ticks(pid) is None


async def test_stopping_during_the_preparation_does_not_wait_for_it(home: Home) -> None:
    began = asyncio.Event()

    async def prepare() -> None:
        began.set()
        await asyncio.sleep(3600)

    supervisor = Supervisor(home, [shell(home, "a", "true", prepare=prepare)], Told())
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks, supervisor:
        start = tasks.create_task(supervisor.start())
        await began.wait()
        await supervisor.stop()
        await start


async def test_a_restart_runs_something_while_it_is_down(home: Home) -> None:
    told = Told()
    alive: list[bool] = []
    async with Supervisor(home, [shell(home, "a", "exec sleep 60")], told) as supervisor:
        await supervisor.start()
        pid = supervisor.pid("a")
        assert pid is not None

        async def while_down() -> None:
            alive.append(start_ticks(pid) is not None)

        await supervisor.restart("a", while_down)
        assert alive == [False]
        assert supervisor.pid("a") not in (None, pid)
        with pytest.raises(NotFound):
            await supervisor.restart("b")
    assert told.count(Happening.died, "a") == 0
    with pytest.raises(Conflict):
        await supervisor.restart("a")


async def test_one_that_is_found_ill_is_restarted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "LOOK_SECONDS", 0.01)
    told = Told()
    illness = ["it is stuck"]

    async def check() -> str:
        return illness.pop() if illness else ""

    async with Supervisor(home, [shell(home, "a", "exec sleep 60", check=check)], told) as supervisor:
        await supervisor.start()
        assert (await told.until(Happening.died, "a")).detail == "it is stuck"
        await told.until(Happening.restarted, "a")
    assert told.count(Happening.died, "a") == 1


async def test_leaving_by_an_error_stops_all(home: Home) -> None:
    told = Told()
    with pytest.raises(RuntimeError, match="something else"):
        await _break_while_running(Supervisor(home, [shell(home, "a", "exec sleep 60")], told))
    assert told.count(Happening.stopped, "a") == 1


async def _break_while_running(supervisor: Supervisor) -> None:
    async with supervisor:
        await supervisor.start()
        raise RuntimeError("something else broke")


def test_children_that_wait_for_each_other_are_refused(home: Home) -> None:
    with pytest.raises(InvalidInput, match="a, b"):
        Supervisor(home, [shell(home, "a", "", after=("b",)), shell(home, "b", "", after=("a",))], print)
    with pytest.raises(InvalidInput, match="c"):
        Supervisor(home, [shell(home, "a", "", after=("c",))], print)


ALONE = """
import asyncio, pathlib, sys
from cortex_cli.embedded.child import Child
from cortex_cli.embedded.layout import Home
from cortex_cli.embedded.supervisor import Supervisor
async def main():
    home = Home(pathlib.Path(sys.argv[1]))
    child = Child("a", ("/bin/sleep", "600"), {}, home.path)
    async with Supervisor(home, [child], lambda event: None) as supervisor:
        await supervisor.start()
        print(supervisor.pid("a"), flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_killed_supervisor_leaves_nothing_running(home: Home) -> None:
    command = [sys.executable, "-c", ALONE, str(home.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as alone:
        assert alone.stdout is not None
        pid = int(alone.stdout.readline())
        assert start_ticks(pid) is not None
        alone.kill()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while start_ticks(pid) is not None:
            await asyncio.sleep(0.01)


async def test_an_orphan_of_an_earlier_life_is_ended_first(home: Home) -> None:
    told = Told()
    with subprocess.Popen(["/bin/sleep", "600"], start_new_session=True) as orphan:
        async with Supervisor(home, [shell(home, "a", "exec sleep 60")], told) as supervisor:
            await supervisor.start()
            record = read_json(home.record("a"))
        forged = record | {"pid": orphan.pid, "start_ticks": start_ticks(orphan.pid)}
        home.record("a").write_text(json.dumps(forged))
        async with Supervisor(home, [shell(home, "a", "exec sleep 60")], told) as supervisor:
            await supervisor.start()
            assert orphan.wait(PATIENCE_SECONDS) == -signal.SIGTERM


async def test_a_stranger_with_a_recycled_pid_is_left_alone(home: Home) -> None:
    with subprocess.Popen(["/bin/sleep", "600"], start_new_session=True) as stranger:
        async with Supervisor(home, [shell(home, "a", "exec sleep 60")], Told()) as supervisor:
            await supervisor.start()
            record = read_json(home.record("a"))
        home.record("a").write_text(json.dumps(record | {"pid": stranger.pid, "start_ticks": 1}))
        async with Supervisor(home, [shell(home, "a", "exec sleep 60")], Told()) as supervisor:
            await supervisor.start()
            assert stranger.poll() is None
        stranger.kill()
