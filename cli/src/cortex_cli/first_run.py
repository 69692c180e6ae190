"""`make run [MODEL=...]`: `cortex up` in this process, and beside it a model's first answer."""

import asyncio
import subprocess
import sys

from cortex_cli.access import Access
from cortex_cli.embedded.layout import Home
from cortex_cli.settings import CliSettings, read_settings
from cortex_cli.up.console import Console
from cortex_cli.up.system import Up, live


class FirstAnswer:
    """The process that makes a model and asks it: begun at once, let go on when the system is up."""

    def __init__(self, home: Home, settings: CliSettings, model: str) -> None:
        self._argv = [sys.executable, "-m", "cortex_cli.first_answer", str(home.path), model]
        self._environment = settings.environment
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start it; it prepares what needs no running system. Out of reach of the terminal's Ctrl-C."""
        self._process = subprocess.Popen(
            self._argv, env=self._environment, stdin=subprocess.PIPE, start_new_session=True
        )

    async def go_on(self, _access: Access) -> None:
        """Tell it that the system is up, and wait for its end."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"up\n")
            self._process.stdin.close()
        except BrokenPipeError:
            return  # it has said why
        while self._process.poll() is None:  # noqa: ASYNC110 (a process started before the loop could watch it)
            await asyncio.sleep(0.1)

    def end(self) -> None:
        """It is not needed any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def main(model: str) -> int:
    """Run until Ctrl-C; exit codes as those of `cortex up`."""
    settings = read_settings()
    home = Home(settings.home, runtime_folder=settings.runtime_folder)
    first = FirstAnswer(home, settings, model)
    up = Up(home=home, settings=settings, console=Console(), when_up=first.begin, when_ready=first.go_on)
    try:
        return asyncio.run(live(up))
    finally:
        first.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
