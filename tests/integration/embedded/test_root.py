"""Root: Postgres runs as nobody of a user namespace, or as the real one, or it is said what to do.

A process in a changed root directory may not make user namespaces (unshare(2), EPERM), which is how these
tests come by a machine without them.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cortex_cli.embedded import launch

from tests.integration.embedded.test_refusals import refused
from tests.servers import connect_postgres, run_servers

NOBODY = 65534


@pytest.fixture
def without_namespaces() -> Iterator[tuple[str, ...]]:
    """Words before a command that take user namespaces away from it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and util-linux")
    with tempfile.TemporaryDirectory(prefix="cortex-test-", dir="/tmp") as root:
        words = ("unshare", "--mount", "sh", "-c", 'mount --rbind / "$0" && exec chroot "$0" "$@"', root)
        probe = subprocess.run(
            [*words, sys.executable, "-c", "import os; os.unshare(0x10000000)"], capture_output=True
        )
        if b"PermissionError" not in probe.stderr:
            pytest.skip("cannot take user namespaces away here")
        yield words


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may pass."""
    with tempfile.TemporaryDirectory(prefix="cortex-test-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def test_the_user_of_a_namespace_has_a_name() -> None:
    # initdb asks for it, and a bare machine has a name for root and the system's users only.
    ask = "import os, pwd; print(pwd.getpwuid(os.geteuid()).pw_name)"
    words = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), "15", "namespace"]
    done = subprocess.run([*words, sys.executable, "-c", ask], capture_output=True, text=True)
    if done.returncode == launch.REFUSED:
        pytest.skip("no user namespaces here")
    assert done.stdout == "nobody\n", done.stderr


async def test_postgres_runs_as_nobody(without_namespaces: tuple[str, ...], open_folder: Path) -> None:
    home = open_folder / "home"
    for _ in ("first", "again"):
        with run_servers(home, careless=False, before=without_namespaces) as servers:
            assert psutil.Process(servers.pid("postgres")).uids().real == NOBODY
            connection = await connect_postgres(servers.postgres_url)
            await connection.execute("CREATE TABLE IF NOT EXISTS t (i int)")
            await connection.close()
            servers.kill("postgres")
            await servers.wait("postgres")
            connection = await connect_postgres(servers.postgres_url)
            assert await connection.fetchval("SELECT count(*) FROM t") == 0
            await connection.close()
    assert (home / "data/postgres").stat().st_uid == NOBODY
    for folder in (home, home / "data", home / "run"):
        assert folder.stat().st_mode & 0o777 == 0o711
    assert (home / "secrets").stat().st_mode & 0o777 == 0o700


def test_a_home_that_nobody_cannot_pass_is_refused(
    without_namespaces: tuple[str, ...], open_folder: Path
) -> None:
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    error = refused(closed / "home", before=without_namespaces)
    assert error["code"] == "embedded.postgres_as_root"
    assert str(closed) in error["message"]
    assert "CORTEX_HOME" in error["remedy"]
