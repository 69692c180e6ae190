"""What is logged, and what never is."""

import subprocess
import sys

import pytest

# In a process of its own: configuring logs is for a whole process.
_PROGRAM = """
import logging, sys
from cortex_shared import logs
from cortex_shared.settings import LogSettings

logs.configure(LogSettings(format=sys.argv[1]), service="api")

def fail(password):
    raise ValueError("no luck")

for logger, field in ((logs.get_logger("x"), {}), (logging.getLogger("library"), {})):
    try:
        fail("hunter" + "2")
    except ValueError:
        logger.exception("it.failed", **field)
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_where_and_never_the_values_of_variables(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, form], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.count("ValueError: no luck") == 2
    assert "in fail" in done.stderr
    assert "hunter2" not in done.stderr
