"""Bringing the system of a home down from another process, and removing its data."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable

from cortex_shared.errors import Conflict, Forbidden

from cortex_cli.embedded.layout import Home, read_json
from cortex_cli.embedded.lock import UpLock, is_held, read_holder
from cortex_cli.embedded.process import end_orphans
from cortex_cli.settings import CliSettings
from cortex_cli.up.engines import stop_engines

DOWN_SECONDS_MAX = 240.0
_LOOK_SECONDS = 0.05
_SIGN_SECONDS = 2.0


def bring_down(home: Home, settings: CliSettings, say: Callable[[str], None]) -> bool:
    """Stop what runs in the home; whether anything did. Raises Conflict when it does not stop in time.

    Also what a killed `cortex up` left: its servers end with it, its engines do not.
    """
    if not home.path.exists():
        return False
    ran = False
    if is_held(home.up_lock):
        ran = True
        pid = _holder(home)
        say(f"Stopping Cortex (pid {pid}): open requests may finish, then models stop ...")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        _until_released(home, pid)
    return asyncio.run(_end_leftovers(home, settings)) or ran


def remove(home: Home, *, models: bool) -> None:
    """Delete the home's data; `models/` only when asked, and never what lies elsewhere."""
    elsewhere = home.sockets if home.sockets != home.run else None
    try:
        for entry in home.path.iterdir():
            if entry == home.models and not models:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        if elsewhere is not None:
            shutil.rmtree(elsewhere, ignore_errors=True)
        if not any(home.path.iterdir()):
            home.path.rmdir()
    except PermissionError as error:
        raise Forbidden(
            f"{error.filename} may not be removed.",
            code="down.not_removable",
            remedy="Run it as the user who made this home.",
        ) from error


async def _end_leftovers(home: Home, settings: CliSettings) -> bool:
    if not home.run.exists():
        return False
    lock = await UpLock(home.up_lock).acquire()
    try:
        ended = await end_orphans(home.run)
        node = read_json(home.config_file).get("node")
        if isinstance(node, str) and (home.nodes / node).is_dir():
            await stop_engines(home.node(node), settings)
        return bool(ended)
    finally:
        lock.release()


def _holder(home: Home) -> int:
    deadline = time.monotonic() + _SIGN_SECONDS
    while (holder := read_holder(home.up_lock)) is None:
        if time.monotonic() > deadline:
            raise Conflict(
                "Something holds the home's lock without a name.",
                code="down.unknown_holder",
                remedy=f"`fuser {home.up_lock}` shows which process it is.",
            )
        time.sleep(_LOOK_SECONDS)
    return holder.pid


def _until_released(home: Home, pid: int) -> None:
    deadline = time.monotonic() + DOWN_SECONDS_MAX
    while is_held(home.up_lock):
        if time.monotonic() > deadline:
            raise Conflict(
                f"Cortex (pid {pid}) has not stopped within {DOWN_SECONDS_MAX:.0f} s.",
                code="down.still_running",
                remedy=f"See its logs in {home.logs}; kill -9 {pid} ends it at once (models then run on).",
            )
        time.sleep(_LOOK_SECONDS)
