"""`cortex up`, `cortex down`, `cortex reset`: the system on this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from cortex_shared.errors import Conflict, CortexError, InvalidInput

from cortex_cli.commands.options import HomeFolder, Json
from cortex_cli.embedded.layout import Home
from cortex_cli.embedded.lock import is_held, read_holder
from cortex_cli.exit_codes import ExitCode
from cortex_cli.session import Session
from cortex_cli.up.down import bring_down, remove

Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Default: the last one, or the first free.")]


def up(
    context: typer.Context,
    home: HomeFolder = None,
    listen: Annotated[
        str, typer.Option(help="Address for API, gateway and NATS; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    gateway_port: Port = None,
    api_port: Port = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it is ready.")] = False,
) -> None:
    """Run the whole system on this machine until Ctrl-C."""
    place = Session.of(context).home(home)
    words = ["--listen", listen]
    for name, port in (("--gateway-port", gateway_port), ("--api-port", api_port)):
        words += [name, str(port)] if port is not None else []
    if detach:
        start_detached(place, words)
        return
    _say_who_runs(place)
    # Another program takes this one's place: what the command line needed does not stay in memory.
    argv = [sys.executable, "-m", "cortex_cli.up", "--home", str(place.path), *words]
    sys.stdout.flush()
    os.execv(sys.executable, argv)


def start_detached(home: Home, words: list[str]) -> None:
    """Start it in the background and wait until it is ready. Raises CortexError, or exits as it did."""
    if is_held(home.up_lock) and not _is_draining(home):
        holder = read_holder(home.up_lock)
        print(f"Cortex runs already{f' (pid {holder.pid})' if holder else ''}. {_where(home)}")
        return
    # It talks into this pipe until it is ready, then into its log.
    starting = subprocess.Popen(
        [sys.executable, "-m", "cortex_cli.up", "--home", str(home.path), "--detached", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert starting.stdout is not None
    try:
        for line in starting.stdout:
            print(line, end="", flush=True)
    except KeyboardInterrupt:
        starting.send_signal(signal.SIGTERM)
        for line in starting.stdout:
            print(line, end="", flush=True)
        starting.wait()
        raise
    if starting.poll() is None and is_held(home.up_lock):
        return
    raise typer.Exit(starting.wait() or ExitCode.failed)


def down(context: typer.Context, home: HomeFolder = None) -> None:
    """Stop the system and its models. What should run is remembered for the next `cortex up`."""
    session = Session.of(context)
    place = session.home(home)
    began = time.monotonic()
    if bring_down(place, session.settings, print):
        print(f"Stopped after {time.monotonic() - began:.1f} s.")
    else:
        print(f"Nothing runs in {place.path}.")


def reset(
    context: typer.Context,
    home: HomeFolder = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    models: Annotated[bool, typer.Option("--models", help="Also the model files in the home.")] = False,
) -> None:
    """Stop the system and remove its data: models' settings, keys, usage, logs. Model files stay."""
    session = Session.of(context)
    place = session.home(home)
    if not place.path.exists():
        print(f"There is nothing at {place.path}.")
        return
    _check_is_home(place)
    what = "everything in" if models else "everything but models/ in"
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidInput("Nobody can be asked here.", code="cli.reset", remedy="Add --yes.")
        answer = input(f"Remove {what} {place.path}: settings of models, keys, usage, logs? Type yes: ")
        if answer.strip() != "yes":
            raise CortexError("Nothing was removed.", code="cli.reset", remedy=None)
    bring_down(place, session.settings, print)
    remove(place, models=models)
    print(f"Removed {what} {place.path}.")


def version(as_json: Json = False) -> None:
    """Which version this is."""
    from importlib.metadata import version as version_of

    found = version_of("cortex-cli")
    print(f'{{"version": "{found}"}}' if as_json else f"cortex {found}")


def _say_who_runs(home: Home) -> None:
    if not is_held(home.up_lock) or _is_draining(home):
        return
    holder = read_holder(home.up_lock)
    raise Conflict(
        f"Cortex runs already in {home.path}{f' (pid {holder.pid})' if holder else ''}. {_where(home)}",
        code="embedded.already_up",
        remedy="Use it (`cortex status`), stop it (`cortex down`), or give another folder with --home.",
    )


def _is_draining(home: Home) -> bool:
    holder = read_holder(home.up_lock)
    return holder is not None and holder.draining


def _where(home: Home) -> str:
    from cortex_cli.access import read_access

    access = read_access(home.access_file)
    return f"OpenAI API {access.gateway_url}/v1, admin API {access.api_url}/api/v1." if access.api_url else ""


def _check_is_home(home: Home) -> None:
    """A slip of --home must not cost somebody's folder."""
    ours = {"data", "run", "logs", "secrets", "models", "nodes", "access.json", "config.json"}
    strange = [entry.name for entry in home.path.iterdir() if entry.name not in ours]
    if strange or home.path == Path.home():
        raise Conflict(
            f"{home.path} holds what is not Cortex's: {', '.join(sorted(strange)[:5])}.",
            code="cli.not_a_home",
            field="--home",
            remedy="Check the path; move your own files away from a home of Cortex.",
        )
