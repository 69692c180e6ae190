"""`python -m cortex_gateway`: a gateway of a fleet; with `--routes FILE` one that stands alone."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cortex_shared.errors import CortexError
from cortex_shared.logs import configure
from cortex_shared.process import run
from cortex_shared.settings import from_environment

from cortex_gateway.main import main
from cortex_gateway.settings import Settings
from cortex_gateway.worker import Worker
from cortex_gateway.workers import serve

_FAILED = 1


def start(words: Sequence[str]) -> int:
    """Run until a signal; the status to exit with."""
    options = _options().parse_args(words)
    settings = from_environment(Settings)
    configure(settings.log, service="gateway")
    try:
        if options.routes is None:
            return _fleet(settings)
        from cortex_gateway.alone import start_alone

        # The environment is what `${NAME}` in the file stands for.
        return start_alone(settings, options.routes, os.environ, check=options.check)  # noqa: TID251 (as said)
    except CortexError as error:
        sys.stderr.write(f"error: {error.message}\nremedy: {error.remedy or 'see the log'}\n")
        return _FAILED


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cortex_gateway", description=__doc__)
    parser.add_argument("--routes", type=Path, metavar="FILE", help="serve what this file says, alone")
    parser.add_argument("--check", action="store_true", help="only say whether the file is good")
    return parser


def _fleet(settings: Settings) -> int:
    def work(worker: Worker) -> None:
        run(partial(main, settings, worker))

    return serve(settings, partial(main, settings), work)


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
