"""One running system for most tests, with a model that tells STORY and one that embeds."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cortex_llamacpp.tiny import write_tiny_model

from tests.e2e.system import System, system_in


@pytest.fixture(scope="session")
def empty_system() -> Iterator[System]:
    """Up, with no model in it."""
    with (
        TemporaryDirectory(prefix="cortex-e2e-", ignore_cleanup_errors=True) as folder,
        system_in(Path(folder)) as system,
    ):
        system.start()
        yield system


@pytest.fixture(scope="session")
def system(empty_system: System) -> System:
    """`story` and `vectors` run."""
    models = empty_system.home / "models"
    write_tiny_model(models / "story.gguf")
    write_tiny_model(models / "vectors.gguf", kind="embed")
    empty_system.cortex("run", str(models / "story.gguf"))
    empty_system.cortex("run", str(models / "vectors.gguf"), "--set", "task=embedding")
    return empty_system


@pytest.fixture
def alone() -> Iterator[System]:
    """A home of its own, not up."""
    with (
        TemporaryDirectory(prefix="cortex-e2e-", ignore_cleanup_errors=True) as folder,
        system_in(Path(folder)) as system,
    ):
        yield system
