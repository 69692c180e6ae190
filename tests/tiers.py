"""Runs the tiers of tests and ends with one line about all: python -m tests.tiers [TIER ...].

Each tier is a pytest of its own; with CORTEX_TEST_RESULTS set, its JUnit file stays in that folder.
"""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

TIERS = ("unit", "contract", "integration", "e2e", "chaos")
_NO_TESTS = 5
"""pytest's exit status when it collected none."""


def main(chosen: list[str]) -> int:
    """0 when every tier passed and something ran."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="cortex-results-") as spare:
        results = Path(os.environ.get("CORTEX_TEST_RESULTS") or spare)
        lines: list[str] = []
        failed = ran = False
        for tier in chosen or TIERS:
            if not (here / tier).is_dir():
                lines.append(f"{tier}: none")
                continue
            status, line = _run(tier, here / tier, results / f"{tier}.xml")
            failed = failed or status not in (0, _NO_TESTS)
            ran = ran or status == 0
            lines.append(f"{tier}: {line}")
    print(" · ".join(lines))
    return 1 if failed or not ran else 0


def _run(tier: str, folder: Path, result: Path) -> tuple[int, str]:
    print(f"== {tier}", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", str(folder), f"--junit-xml={result}"]
    status = subprocess.run(command, cwd=folder.parents[1], check=False).returncode
    seconds = time.monotonic() - began
    if not result.exists():
        return status, f"did not run (status {status})"
    total = bad = skipped = 0
    for suite in ElementTree.fromstring(result.read_text()).iter("testsuite"):
        total += int(suite.get("tests", 0))
        bad += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    words = [f"{total - bad - skipped} passed"]
    words += [f"{bad} failed"] if bad else []
    words += [f"{skipped} skipped"] if skipped else []
    return status, f"{', '.join(words)} in {seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
