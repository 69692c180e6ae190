"""What runs on this host for an agent under test, as /proc says."""

from contextlib import suppress
from pathlib import Path

import psutil

from tests.integration.node_agent.conftest import AgentUnderTest


def runners(agent: AgentUnderTest) -> set[int]:
    """All runners of its state folder, the spare one too."""
    mine = str(agent.state / "runner.pyc")
    return {found.pid for found in psutil.process_iter(["cmdline"]) if mine in (found.info["cmdline"] or [])}


def engines(agent: AgentUnderTest) -> dict[str, list[int]]:
    """Processes that run in an instance's folder, by instance."""
    found: dict[str, list[int]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            folder = Path(process.cwd().removesuffix(" (deleted)"))
            if folder.parent == agent.state / "instances" and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(folder.name, []).append(process.pid)
    return found
