"""`python -m cortex_api`: settings from the environment, logs, then the service."""

import sys

from cortex_shared import logs
from cortex_shared.errors import CortexError
from cortex_shared.process import run
from cortex_shared.settings import from_environment

from cortex_api.main import main
from cortex_api.settings import Settings


def _start() -> int:
    settings = from_environment(Settings)
    logs.configure(settings.log, service="api")
    try:
        run(lambda: main(settings))
    except* CortexError as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        assert isinstance(first, CortexError)
        sys.stderr.write(f"{first.message}\n{first.remedy or ''}\n")
        sys.exit(2)
    return 0


if __name__ == "__main__":
    sys.exit(_start())
