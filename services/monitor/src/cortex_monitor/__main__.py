"""`python -m cortex_monitor`: settings from CORTEX_* environment variables."""

from cortex_shared import logs
from cortex_shared.process import run
from cortex_shared.settings import from_environment

from cortex_monitor.main import monitor
from cortex_monitor.settings import Settings


def main() -> None:
    """Run the monitor until a signal."""
    settings = from_environment(Settings)
    logs.configure(settings.log, service="monitor")
    run(lambda: monitor(settings))


if __name__ == "__main__":
    main()
