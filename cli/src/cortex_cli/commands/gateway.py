"""`cortex gateway`: a gateway that stands alone, in front of engines that Cortex did not start."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def gateway(
    routes: Annotated[Path, typer.Option(metavar="FILE", help="What to serve: see docs/gateway.md.")],
    check: Annotated[bool, typer.Option("--check", help="Only say whether the file is good.")] = False,
) -> None:
    """Serve what a file says, without the rest of Cortex, until Ctrl-C."""
    words = ["--routes", str(routes), *(["--check"] if check else [])]
    sys.stdout.flush()
    # It takes this command's place: signals and the exit status are its own.
    os.execv(sys.executable, [sys.executable, "-m", "cortex_gateway", *words])
