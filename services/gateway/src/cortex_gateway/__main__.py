"""`python -m cortex_gateway`: one gateway process of a fleet."""

from functools import partial

from cortex_shared.logs import configure
from cortex_shared.process import run

from cortex_gateway.main import main
from cortex_gateway.settings import Settings

if __name__ == "__main__":
    settings = Settings()
    configure(settings.log, service="gateway")
    run(partial(main, settings))
