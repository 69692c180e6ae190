"""Stopping the engines of a home once its agent has stopped: they outlive it on purpose."""

import asyncio
import os
import sys
from pathlib import Path

from cortex_cli.settings import CliSettings
from cortex_cli.up.services import AGENT_MODULE

STOP_SECONDS_MAX = 120.0


async def stop_engines(state: Path, settings: CliSettings) -> bool:
    """Stop every engine that the agent of `state` left, with its grace; whether that went well.

    What is wanted stays as it is: the agent starts them again. Shielded from a cancellation that is
    already under way; bounded in time.
    """
    if not os.listdir(state):
        return True
    stopping = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        AGENT_MODULE,
        "stop-engines",
        "--state",
        str(state),
        env=settings.services(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(STOP_SECONDS_MAX):
            return await stopping.wait() == 0
    except TimeoutError:
        stopping.kill()
        await stopping.wait()
        return False
