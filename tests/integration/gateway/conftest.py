"""Fixtures of the gateway's tests: real servers, a folder for journals, and production's event loop."""

from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from tests.servers import servers

__all__ = ["servers"]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], object]]:
    """The gateway runs on uvloop, whose transports differ from asyncio's: so do its tests."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A folder for the usage journal."""
    return tmp_path / "journal"
