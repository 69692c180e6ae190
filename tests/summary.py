"""Adds up pytest's JUnit files into one closing line: python -m tests.summary FILE.xml ..."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main(paths: list[str]) -> int:
    """Print `N passed, N failed, N skipped`; returns 1 when something failed or nothing ran."""
    total = failed = skipped = 0
    for path in paths:
        for suite in ElementTree.fromstring(Path(path).read_text()).iter("testsuite"):
            total += int(suite.get("tests", 0))
            failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped += int(suite.get("skipped", 0))
    passed = total - failed - skipped
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
