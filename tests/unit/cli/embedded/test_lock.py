"""One `cortex up` per home."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cortex_cli.embedded.lock import UpLock, is_held, read_holder
from cortex_shared.errors import Conflict


async def test_a_second_one_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "up.lock"
    lock = await UpLock(path).acquire()
    with pytest.raises(Conflict) as caught:
        await UpLock(path).acquire()
    assert str(os.getpid()) in caught.value.message
    assert caught.value.code == "embedded.already_up"
    assert "cortex down" in (caught.value.remedy or "")
    lock.release()
    assert not is_held(path)
    (await UpLock(path).acquire()).release()


async def test_the_next_waits_for_one_that_drains(tmp_path: Path) -> None:
    path = tmp_path / "up.lock"
    lock = await UpLock(path).acquire()
    lock.draining()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(UpLock(path).acquire(drain_seconds=30))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        lock.release()
    second = await waiting
    assert is_held(path)
    second.release()


async def test_the_wait_for_a_draining_one_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "up.lock"
    lock = await UpLock(path).acquire()
    lock.draining()
    with pytest.raises(Conflict) as caught:
        await UpLock(path).acquire(drain_seconds=0.2)
    assert caught.value.code == "embedded.still_draining"
    lock.release()


async def test_it_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "up.lock"
    code = (
        "import asyncio, sys, pathlib, time\n"
        "from cortex_cli.embedded.lock import UpLock\n"
        "lock = asyncio.run(UpLock(pathlib.Path(sys.argv[1])).acquire())\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        found = read_holder(path)
        assert found is not None
        assert (found.pid, found.draining) == (holder.pid, False)
        assert is_held(path)
        holder.send_signal(signal.SIGKILL)
    assert not is_held(path)
    (await UpLock(path).acquire()).release()


async def test_a_lock_whose_file_was_removed_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "up.lock"
    old = await UpLock(path).acquire()
    path.unlink()  # `cortex reset`
    new = await UpLock(path).acquire()
    assert is_held(path)
    old.release()
    assert is_held(path)
    new.release()


def test_a_disk_that_is_full_keeps_nobody_from_stopping(tmp_path: Path) -> None:
    """A file size limit stands for the disk: writing fails in the same way."""
    script = (
        "import asyncio, pathlib, resource, sys\n"
        "from cortex_cli.embedded.lock import UpLock\n"
        "lock = asyncio.run(UpLock(pathlib.Path(sys.argv[1])).acquire())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "lock.draining()\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "lock")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
