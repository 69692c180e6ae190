"""Adds up pytest's JUnit files into one closing line: python -m tests.summary FILE.xml ..."""

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Count:
    """How many tests passed, failed (errors among them) and were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0


def count(paths: Iterable[Path]) -> Count:
    """All tests of these files."""
    total = failed = skipped = 0
    for path in paths:
        for suite in ElementTree.fromstring(path.read_text()).iter("testsuite"):
            total += int(suite.get("tests", 0))
            failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped += int(suite.get("skipped", 0))
    return Count(total - failed - skipped, failed, skipped)


def main(paths: list[str]) -> int:
    """Print `N passed, N failed, N skipped`; returns 1 when something failed or nothing ran."""
    found = count(map(Path, paths))
    print(f"{found.passed} passed, {found.failed} failed, {found.skipped} skipped")
    return 1 if found.failed or not found.passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
