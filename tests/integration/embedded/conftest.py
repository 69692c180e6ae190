"""The servers' fixtures, and the users that the servers must run as."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import secured_servers, servers

__all__ = ["secured_servers", "servers"]

_NOBODY = 65534


@dataclass(frozen=True)
class User:
    """Who runs the servers, by the words before their command, and a folder of theirs."""

    name: str
    before: tuple[str, ...]
    folder: Path

    @property
    def home(self) -> Path:
        """Where their CORTEX_HOME is to be."""
        return self.folder / "home"


def ordinary_user() -> tuple[str, ...]:
    """Words that run a command as an ordinary user; empty when we are one. Skips when that is not to be had.

    The right to read is kept, for the interpreter of a developer who is root may lie in root's home.
    """
    if os.geteuid() != 0:
        return ()
    words = ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
    words += ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    probe = [*words, sys.executable, "-c", "import cortex_cli"]
    if shutil.which("setpriv") is None or subprocess.run(probe, capture_output=True, cwd="/").returncode != 0:
        pytest.skip("cannot become an ordinary user here")
    return words


@pytest.fixture(params=["this user", "ordinary user"])
def user(request: pytest.FixtureRequest) -> Iterator[User]:
    """Whoever runs the tests; and, where that is root, an ordinary user as well."""
    before: tuple[str, ...] = ()
    if request.param == "ordinary user":
        before = ordinary_user()
        if not before:
            pytest.skip("is the same as this user")
    with tempfile.TemporaryDirectory(prefix="cortex-test-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        if before:
            os.chown(folder, _NOBODY, _NOBODY)
        yield User(request.param, before, Path(folder))
