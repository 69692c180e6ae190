"""The command line: which commands there are, and what is common to all."""

from pathlib import Path
from typing import Annotated

import typer

from cortex_cli.commands import chat, doctor, fleet, gateway, keys, models, run, system, watch
from cortex_cli.exit_codes import MEANINGS
from cortex_cli.session import Session
from cortex_cli.settings import read_settings


def build() -> typer.Typer:
    """All commands."""
    app = _group("Serve large language models: on this machine (`cortex up`), or on a fleet.")
    app.callback(help=common.__doc__, epilog=f"Exit codes: {MEANINGS}")(common)
    for command in (system.up, system.down, run.run, chat.chat, watch.status, doctor.doctor, gateway.gateway):
        app.command()(command)
    app.add_typer(_models(), name="models")
    instances = _group("Replicas of models.")
    instances.command("list")(fleet.list_instances)
    instances.command("show")(fleet.show_instance)
    instances.command("delete")(fleet.delete_instance)
    app.add_typer(instances, name="instances")
    app.add_typer(_nodes(), name="nodes")
    app.add_typer(_keys(), name="keys")
    for command in (watch.events, watch.audit, watch.usage, system.reset, system.version):
        app.command()(command)
    return app


def common(
    context: typer.Context,
    home: Annotated[
        Path | None, typer.Option(help="The folder of a system on this machine. [CORTEX_HOME]")
    ] = None,
    api_url: Annotated[
        str | None, typer.Option(help="Address of another system's API. [CORTEX_API_URL]")
    ] = None,
    token: Annotated[str | None, typer.Option(help="A key for it; better: [CORTEX_TOKEN]")] = None,
) -> None:
    """Serve large language models: on this machine (`cortex up`), or on a fleet.

    Addresses and secrets: options, else CORTEX_API_URL and CORTEX_TOKEN, else the home's access.json.
    """
    context.obj = Session(read_settings(), home, api_url, token)


def _models() -> typer.Typer:
    group = _group("Models: what should be served, and how it is doing.")
    group.command("list")(models.list_models)
    for command in (
        models.show,
        models.create,
        models.start,
        models.stop,
        models.patch,
        models.delete,
        models.logs,
    ):
        group.command()(command)
    group.command("dry-run")(models.dry_run)
    return group


def _nodes() -> typer.Typer:
    group = _group("Hosts that run models.")
    group.command("list")(fleet.list_nodes)
    group.command("show")(fleet.show_node)
    group.command("add")(fleet.add_node)
    group.command()(fleet.cordon)
    group.command()(fleet.uncordon)
    return group


def _keys() -> typer.Typer:
    group = _group("API keys.")
    group.command()(keys.create)
    group.command("list")(keys.list_keys)
    group.command()(keys.patch)
    group.command()(keys.revoke)
    return group


def _group(words: str) -> typer.Typer:
    return typer.Typer(
        help=words,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
