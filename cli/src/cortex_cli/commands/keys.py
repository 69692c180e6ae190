"""`cortex keys`: who may use the models and who may administer."""

from typing import Annotated, cast

import typer

from cortex_cli import output, shapes
from cortex_cli.commands.options import Json
from cortex_cli.session import Session

Models = Annotated[list[str] | None, typer.Option("--model", help="Only this served model; may be repeated.")]
PerMinute = Annotated[int | None, typer.Option(min=0, help="0: no limit.")]
Budget = Annotated[int | None, typer.Option(min=0, help="A budget, by UTC; 0: none.")]
Open = Annotated[int | None, typer.Option(min=0, help="Open requests; 0: no limit.")]
Networks = Annotated[
    list[str] | None, typer.Option("--network", help="Only from there, as 10.0.0.0/8; may be repeated.")
]
Priority = Annotated[int | None, typer.Option(help="Higher goes first where requests wait.")]
ExpiresAt = Annotated[str | None, typer.Option(help="ISO 8601 with a zone, 2030-01-31T00:00Z.")]


def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[str, typer.Option(help="user, viewer, operator or admin.")] = "user",
    models: Models = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: PerMinute = None,
    concurrency: Open = None,
    tokens_per_day: Budget = None,
    tokens_per_month: Budget = None,
    networks: Networks = None,
    priority: Priority = None,
    expires_at: ExpiresAt = None,
    as_json: Json = False,
) -> None:
    """A new API key. It is shown this once."""
    with Session.of(context).api() as api:
        found = api.create_key(_given(context))
    if as_json:
        output.as_json(found)
        return
    print(found.get("key"))
    print(f"Key {found['id']} ({name}, {role}). It is shown this once, and stored nowhere.")


def patch(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id.")],
    name: Annotated[str | None, typer.Option(help="What the key is for.")] = None,
    models: Models = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: PerMinute = None,
    concurrency: Open = None,
    tokens_per_day: Budget = None,
    tokens_per_month: Budget = None,
    networks: Networks = None,
    priority: Priority = None,
    expires_at: ExpiresAt = None,
    as_json: Json = False,
) -> None:
    """Change what a key may do; it holds everywhere within a second."""
    with Session.of(context).api() as api:
        found = api.patch_key(key, _given(context))
    if as_json:
        output.as_json(found)
    else:
        print(f"Key {found['id']} ({found['name']}) is changed.")


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


def _given(context: typer.Context) -> shapes.Json:
    """The options that were given, which have the names of the API's fields."""
    params = cast("dict[str, object]", context.params)
    return {
        name: list(value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] (of words)
        for name, value in params.items()
        if name not in ("key", "as_json") and value not in (None, [], ())
    }
