"""`cortex instances` and `cortex nodes`: replicas, and the hosts that run them."""

import os
from pathlib import Path
from typing import Annotated

import typer
from cortex_shared.errors import Conflict

from cortex_cli import output
from cortex_cli.commands.options import Json
from cortex_cli.session import Session
from cortex_cli.shapes import Node

NodeName = Annotated[str, typer.Argument(metavar="NODE", help="Name of a node.")]


def list_instances(context: typer.Context, as_json: Json = False) -> None:
    """All replicas: where they run and how they are."""
    with Session.of(context).api() as api:
        found = api.instances()
    if as_json:
        output.as_json(found)
        return
    rows = [
        (
            instance["id"],
            instance.get("model") or instance.get("model_id"),
            instance.get("node"),
            instance.get("phase"),
            instance.get("port"),
            instance.get("gpus"),
            instance.get("restarts"),
            output.age(instance.get("since")),
            (instance.get("reason") or {}).get("message"),
        )
        for instance in found
    ]
    headings = ("ID", "MODEL", "NODE", "PHASE", "PORT", "GPUS", "RESTARTS", "SINCE", "REASON")
    output.table(headings, rows, empty="No instances: no model runs.")


def show_instance(
    context: typer.Context,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="Its id.")],
    as_json: Json = False,
) -> None:
    """One replica."""
    with Session.of(context).api() as api:
        found = api.instance(instance)
    if as_json:
        output.as_json(found)
    else:
        output.fields(list(found.items()))


def delete_instance(
    context: typer.Context,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="Its id.")],
) -> None:
    """Stop an engine that runs though no model has it, as after a database was lost."""
    with Session.of(context).api() as api:
        api.end_instance(instance)
    print(f"{instance} is told to stop.")


def list_nodes(context: typer.Context, as_json: Json = False) -> None:
    """All hosts."""
    with Session.of(context).api() as api:
        found = api.nodes()
    if as_json:
        output.as_json(found)
        return
    rows = [
        (
            node["name"],
            _state(node),
            node.get("address"),
            node.get("cpus"),
            f"{output.gibibytes(node.get('memory_available_mib'))} of "
            f"{output.gibibytes(node.get('memory_total_mib'))}",
            [gpu["name"] for gpu in node.get("gpus") or []],
            _count(node),
        )
        for node in found
    ]
    headings = ("NAME", "STATE", "ADDRESS", "CPUS", "MEMORY FREE", "GPUS", "INSTANCES")
    output.table(headings, rows, empty="No nodes yet: `cortex nodes add NAME` invites one.")


def show_node(context: typer.Context, node: NodeName, as_json: Json = False) -> None:
    """One host."""
    with Session.of(context).api() as api:
        found = api.node(node)
    if as_json:
        output.as_json(found)
    else:
        output.fields(list(found.items()))


def add_node(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new node's name.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File for its credentials; default: NAME.creds here.")
    ] = None,
) -> None:
    """Invite a host: writes the credentials file with which its agent joins."""
    path = out or Path(f"{name}.creds")
    if path.exists():
        raise Conflict(
            f"{path} exists already.", code="cli.file_exists", field="--out", remedy="Name another file."
        )
    with Session.of(context).api() as api:
        text = api.add_node(name)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    print(f"The credentials of {name} are in {path}: secret, copy them to that host, and there run")
    print(f"  python -m cortex_node_agent --nats nats://THIS-HOST:4222 --credentials {path.name}")


def cordon(context: typer.Context, node: NodeName) -> None:
    """Place no new replicas there; those that run stay."""
    with Session.of(context).api() as api:
        api.cordon(node, cordoned=True)
    print(f"{node} is cordoned.")


def uncordon(context: typer.Context, node: NodeName) -> None:
    """Place replicas there again."""
    with Session.of(context).api() as api:
        api.cordon(node, cordoned=False)
    print(f"{node} takes new replicas again.")


def _state(node: Node) -> str:
    state = node.get("verdict") or "-"
    return f"{state}, cordoned" if node.get("cordoned") else state


def _count(node: Node) -> object:
    found: object = node.get("instances")
    return len(found) if isinstance(found, list) else found  # pyright: ignore[reportUnknownArgumentType] (any list)
