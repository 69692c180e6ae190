"""The process that fuzzes: libFuzzer's arguments, with the gateway instrumented. See tests.fuzz."""

import hashlib
import importlib
import sys
from pathlib import Path
from typing import Any

# Not among this project's packages: scripts/fuzz-env brings it.
atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["cortex_gateway"]):
    from tests.fuzz.script import run


def test(data: bytes) -> None:
    """Run one input; one that breaks something is kept."""
    try:
        run(data)
    except BaseException:
        path = Path(f"fuzz-{hashlib.sha256(data).hexdigest()[:12]}")
        path.write_bytes(data)
        print(f"this input is in {path}: {data.hex()}", file=sys.stderr, flush=True)
        raise


if __name__ == "__main__":
    atheris.Setup(sys.argv, test)
    atheris.Fuzz()
