"""Causes and remedies of children that do not come up."""

from pathlib import Path

import pytest
from cortex_cli.embedded.diagnose import start_failure

LOG = Path("/home/someone/.local/share/cortex/logs/nats.log")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("FATAL: could not write lock file: No space left on device", "embedded.disk_full"),
        ("listen tcp 127.0.0.1:4222: bind: address already in use", "embedded.port_taken"),
        ("mkdir /x: permission denied", "embedded.not_permitted"),
        ("FATAL: could not create shared memory segment", "embedded.no_memory"),
        ("something else", "embedded.start_failed"),
    ],
)
def test_a_cause_is_found_and_quoted(line: str, code: str) -> None:
    error = start_failure("nats", "it exited with status 1", ["before", line], LOG)
    assert error.code == code
    assert line in error.message
    assert error.remedy
