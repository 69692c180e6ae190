"""What `cortex up` says: short, and calm when things go as they should."""

import contextlib
import sys
import time
from datetime import datetime
from pathlib import Path

from cortex_shared.errors import CortexError

from cortex_cli.access import Access
from cortex_cli.embedded.child import Event, Happening

_CLEAR = "\r\x1b[K"


class Console:
    """Lines for a person on standard output; on a terminal the start is one line that grows."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._began = time.monotonic()
        self._up: list[str] = []
        self._started = False
        self._stopping = False
        self._down: set[str] = set()

    def seconds(self) -> float:
        """Since this process began to talk."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """A whole line."""
        self._write(f"{_CLEAR if self._terminal else ''}{text}\n")

    def opening(self, home: Path) -> None:
        """The first line."""
        self.say(f"Cortex starts in {home}")

    def event(self, event: Event) -> None:
        """Something happened to a child."""
        if event.happening is Happening.ready:
            self._up.append(f"{event.name} {event.seconds:.1f} s")
            if self._terminal and not self._started:
                self._write(f"{_CLEAR}  {' · '.join(self._up)}")
        elif event.happening is Happening.died and self._started and not self._stopping:
            self._down.add(event.name)
            self.say(f"{_clock()} {event.name} died: {event.detail}; starting it again.")
        elif event.happening is Happening.restarted and event.name in self._down:
            self._down.discard(event.name)
            self.say(f"{_clock()} {event.name} is back after {event.seconds:.1f} s.")

    def all_up(self) -> None:
        """Every child runs."""
        self._started = True
        self.say(f"  {' · '.join(self._up)}")

    def ready(self, access: Access, *, first: bool, detached: bool, home: Path) -> None:
        """Where everything is; the admin token only the first time."""
        lines = [
            f"Cortex is ready after {self.seconds():.1f} s.",
            "",
            f"  OpenAI API    {access.gateway_url}/v1",
            f"  Admin API     {access.api_url}/api/v1",
            f"  API key       {access.api_key}",
        ]
        if first:
            lines += [
                f"  Admin token   {access.admin_token}",
                f"                (shown this once; kept in {home / 'access.json'}, readable by you only)",
            ]
        stop = "`cortex down` stops it" if detached else "Ctrl-C stops it"
        lines += ["", f"{stop} and its models. Logs: {home / 'logs'}", ""]
        for line in lines:
            self.say(line)

    def stopping(self) -> None:
        """The first Ctrl-C."""
        self._stopping = True
        self.say("Stopping: open requests may finish, then models stop. (Ctrl-C again: at once.)")

    def stopped(self, seconds: float) -> None:
        """All is down."""
        self.say(f"Stopped after {seconds:.1f} s. What was running will run again at the next start.")

    def error(self, error: CortexError) -> None:
        """Why it did not work, on standard error."""
        if self._terminal:
            self._write(_CLEAR)
        print(f"error: {error.message}", file=sys.stderr)
        if error.remedy:
            print(f"remedy: {error.remedy}", file=sys.stderr)

    def _write(self, text: str) -> None:
        # The terminal may have gone (SIGHUP), or whoever read the pipe: that must not keep us from stopping.
        with contextlib.suppress(OSError):
            sys.stdout.write(text)
            sys.stdout.flush()


def _clock() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")
