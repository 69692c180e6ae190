"""`cortex run`: from a file, a repository or a name to a model that answers."""

from typing import Annotated

import typer
from cortex_shared.errors import Unavailable

from cortex_cli import output
from cortex_cli.commands.options import Json, Settings, SettingsFile
from cortex_cli.embedded.lock import is_held
from cortex_cli.session import Session
from cortex_cli.shapes import Model


def run(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="FILE.gguf, hf:org/repo[:quant or file], or a model's name."),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the model; default: the file's.")] = None,
    ctx: Annotated[int | None, typer.Option(min=0, help="Context in tokens (context_size).")] = None,
    ngl: Annotated[int | None, typer.Option(min=-1, help="Layers on the GPU.")] = None,
    settings: Settings = None,
    file: SettingsFile = None,
    up: Annotated[bool, typer.Option("--up", help="Start Cortex first if it does not run.")] = False,
    as_json: Json = False,
) -> None:
    """Serve a model and wait until it answers. Exit code 7 if it fails."""
    from cortex_cli.commands.model_settings import read_body, schema_of
    from cortex_cli.progress import until_running
    from cortex_cli.served import ensure_model, read_wanted
    from cortex_cli.served_folders import register_folder

    session = Session.of(context)
    wanted = read_wanted(model)
    _ensure_up(session, up=up)
    with session.api() as api:
        body = read_body(settings, file, schema_of(api, None) if settings else {})
        body |= {key: value for key, value in (("context_size", ctx), ("ngl", ngl)) if value is not None}
        if wanted.file is not None and session.is_local():
            register_folder(session.home(), wanted.file)
        found = ensure_model(api, wanted, body, name=name)
        api.start_model(str(found["id"]))
        found = until_running(api, str(found["id"]), quiet=as_json)
    if as_json:
        output.as_json(found)
    else:
        _tell(session, found)


def _ensure_up(session: Session, *, up: bool) -> None:
    if not session.is_local() or is_held(session.home().up_lock):
        return
    if not up:
        raise Unavailable(
            "Cortex is not running here.",
            code="cli.not_running",
            remedy="Start it with `cortex up` (or `cortex up --detach`, or add --up here).",
        )
    from cortex_cli.commands.system import start_detached

    start_detached(session.home(), [])


def _tell(session: Session, model: Model) -> None:
    served = model["served_model_name"]
    print(f"{model['name']} runs.")
    print(f"  cortex chat {served}")
    if session.is_local():
        print(
            f"  curl {session.access().gateway_url}/v1/chat/completions -H 'Authorization: Bearer API_KEY' \\"
        )
        print("    -H 'Content-Type: application/json' \\")
        print(f'    -d \'{{"model": "{served}", "messages": [{{"role": "user", "content": "Hello"}}]}}\'')
