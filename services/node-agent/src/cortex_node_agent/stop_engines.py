"""Stopping all engines of a state folder without an agent: each with its grace, all at once."""

import time
from collections.abc import Callable
from pathlib import Path

import anyio

from cortex_node_agent.lock import StateLock
from cortex_node_agent.process import ProcessRun, ProcessRuntime
from cortex_node_agent.store import StateFolder


async def stop_engines(folder: Path, grace_seconds: float | None, say: Callable[[str], None]) -> int:
    """Stop what runs, and return how many that were. What is wanted stays: the next agent starts it again.

    `grace_seconds` cuts the plans' own grace short. Raises Conflict while an agent runs: it would start
    them again at once.
    """
    state = StateFolder(folder)
    lock = StateLock(folder)
    lock.take()
    try:
        runtime = ProcessRuntime(state, log_file_bytes_max=1, log_files_max=1, base_env={})
        runs: list[ProcessRun] = []
        for instance in state.instances():
            found = await runtime.find(instance)
            if isinstance(found, ProcessRun):
                runs.append(found)
        async with anyio.create_task_group() as group:
            for run in runs:
                group.start_soon(_stop, run, grace_seconds, say)
        return len(runs)
    finally:
        lock.release()


async def _stop(run: ProcessRun, grace_seconds: float | None, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    if grace_seconds is None:
        await run.stop()
    else:
        with anyio.move_on_after(grace_seconds) as scope:
            await run.stop()
        if scope.cancelled_caught:
            await run.kill()
    say(f"{run.start.plan.container_name} stopped in {time.monotonic() - began:.1f} s")
