"""`cortex keys`: who may use the models and who may administer."""

from typing import Annotated

import typer

from cortex_cli import output
from cortex_cli.commands.options import Json
from cortex_cli.session import Session


def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[str, typer.Option(help="user, viewer, operator or admin.")] = "user",
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Only this served model; may be repeated.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=0, help="0: no limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=0, help="0: no limit.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=0, help="Open requests; 0: no limit.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="ISO 8601 with a zone, 2030-01-31T00:00Z.")] = None,
    as_json: Json = False,
) -> None:
    """A new API key. It is shown this once."""
    wishes: dict[str, object] = {
        "name": name,
        "role": role,
        "models": models or None,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrency": concurrency,
        "expires_at": expires_at,
    }
    with Session.of(context).api() as api:
        found = api.create_key({field: value for field, value in wishes.items() if value is not None})
    if as_json:
        output.as_json(found)
        return
    print(found.get("key"))
    print(f"Key {found['id']} ({name}, {role}). It is shown this once, and stored nowhere.")


def list_keys(context: typer.Context, as_json: Json = False) -> None:
    """All keys; of each its first characters only."""
    with Session.of(context).api() as api:
        found = api.keys()
    if as_json:
        output.as_json(found)
        return
    rows = [
        (
            key["id"],
            key["name"],
            key.get("role"),
            key.get("shown"),
            key.get("models"),
            output.age(key.get("created_at")),
            key.get("expires_at"),
            "revoked" if key.get("revoked_at") else "",
        )
        for key in found
    ]
    headings = ("ID", "NAME", "ROLE", "KEY", "MODELS", "AGE", "EXPIRES", "STATE")
    output.table(headings, rows, empty="No keys.")


def revoke(
    context: typer.Context, key: Annotated[str, typer.Argument(metavar="KEY", help="Its id.")]
) -> None:
    """Refuse a key from now on, everywhere, within a second."""
    with Session.of(context).api() as api:
        api.revoke_key(key)
    print(f"Key {key} is revoked.")
