"""A system with a model that serves, and another to prove that starting works."""

from collections.abc import AsyncGenerator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.chaos.system import System, running_system


@pytest.fixture
async def system() -> AsyncGenerator[System]:
    """A running system with the model `steady` served by a mock engine at 40 tokens/s a stream."""
    with TemporaryDirectory(prefix="cortex-chaos-") as folder:
        async with running_system(Path(folder) / "home") as system:
            await system.create_models()
            await system.api("POST", "/models/steady/start")
            await system.until_running("steady")
            yield system
