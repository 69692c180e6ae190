"""Fuzzes the gateway for some seconds, from the corpus kept here: python -m tests.fuzz SECONDS [--keep].

Ends with a table of the lines that the corpus reaches. `--keep` adds what was found to the corpus, minimised.
An input that breaks something is written to the working folder and shown; add it to corpus/ with its fix.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.coverage import CORPUS
from tests.fuzz.script import INPUT_MAX_BYTES

_TIMEOUT_SECONDS = 30
_MEMORY_MAX_MIB = 2048


def main(seconds: int, *, keep: bool) -> int:
    """0 if nothing broke."""
    with tempfile.TemporaryDirectory(prefix="cortex-fuzz-") as folder:
        found = Path(folder) / "found"
        found.mkdir()
        status = _run(f"-max_total_time={seconds}", str(found), str(CORPUS))
        print(f"{len(list(found.iterdir()))} inputs reach something new")
        added = [str(found)] if keep and status == 0 else []
        subprocess.run([sys.executable, "-m", "tests.fuzz.coverage", *added], check=True)
    return status


def _run(*arguments: str) -> int:
    limits = (
        f"-max_len={INPUT_MAX_BYTES}",
        f"-timeout={_TIMEOUT_SECONDS}",
        f"-rss_limit_mb={_MEMORY_MAX_MIB}",
        "-len_control=10",
        "-use_value_profile=0",
        "-print_final_stats=1",
    )
    command = [sys.executable, "-m", "tests.fuzz.guided", *limits, *arguments]
    # Sets and hashes in one order, so that what breaks once breaks again.
    return subprocess.run(command, check=False, env=os.environ | {"PYTHONHASHSEED": "0"}).returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), keep="--keep" in sys.argv))
