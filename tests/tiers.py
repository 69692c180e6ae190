"""Runs the tiers of tests and ends with one line about all: python -m tests.tiers [TIER ...].

Each tier is a pytest of its own; with CORTEX_TEST_RESULTS set, its JUnit file stays in that folder.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.summary import count

# Tests of these tiers mostly wait for other processes, so several at once are quicker also on two cores; a
# file's tests stay together, for they share servers. The others measure themselves against deadlines.
PARALLEL = {"unit": 2, "integration": 4}
TIERS = ("unit", "contract", "integration", "conformance", "e2e", "chaos")
_NO_TESTS = 5
"""pytest's exit status when it collected none."""


def main(chosen: list[str]) -> int:
    """0 when every tier passed and something ran. A tier's folder may be named instead of all of it."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="cortex-results-") as spare:
        results = Path(os.environ.get("CORTEX_TEST_RESULTS") or spare)
        lines: list[str] = []
        failed = ran = False
        for tier in chosen or TIERS:
            status, line = _run(tier, here / tier, results / f"{tier.replace('/', '-')}.xml")
            failed = failed or status not in (0, _NO_TESTS)
            ran = ran or status == 0
            lines.append(f"{tier}: {line}")
    print(" · ".join(lines))
    return 1 if failed or not ran else 0


def _run(tier: str, folder: Path, result: Path) -> tuple[int, str]:
    print(f"== {tier}", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", str(folder), f"--junit-xml={result}", "--durations=10"]
    whole = tier.partition("/")[0]
    if whole in PARALLEL:
        command += ["-n", str(PARALLEL[whole]), "--dist", "loadfile"]
    status = subprocess.run(command, cwd=folder.parents[1], check=False).returncode
    seconds = time.monotonic() - began
    if not result.exists():
        return status, f"did not run (status {status})"
    found = count([result])
    words = [f"{found.passed} passed"]
    words += [f"{found.failed} failed"] if found.failed else []
    words += [f"{found.skipped} skipped"] if found.skipped else []
    return status, f"{', '.join(words)} in {seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
