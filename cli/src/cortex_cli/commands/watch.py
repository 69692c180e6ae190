"""`cortex status`, `cortex events`, `cortex usage`: how things are, what happened, who used what."""

from typing import Annotated, Any, cast

import typer

from cortex_cli import output
from cortex_cli.commands.options import Json
from cortex_cli.session import Session
from cortex_cli.shapes import Event

_COLUMNS = (
    "group",
    "requests",
    "failed",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "total_tokens",
)


def status(context: typer.Context, as_json: Json = False) -> None:
    """Is it up, where, and what does it serve? Exit code 3 when it is not running."""
    session = Session.of(context)
    with session.api() as api:
        found = api.get("/status")
        models = api.models()
    if as_json:
        output.as_json({"api_url": api.url, "gateway_url": session.access().gateway_url, **found})
        return
    pairs: list[tuple[str, object]] = [("admin API", f"{api.url}/api/v1")]
    if session.is_local():
        pairs += [("OpenAI API", f"{session.access().gateway_url}/v1"), ("home", session.home().path)]
    parts = cast("dict[str, dict[str, Any]]", found.get("parts") or {})
    pairs += [(name, "ok" if part.get("ok") else part.get("problem")) for name, part in parts.items()]
    nodes = cast("dict[str, int]", found.get("nodes") or {})
    pairs.append(("nodes", ", ".join(f"{count} {verdict}" for verdict, count in nodes.items())))
    output.fields(pairs)
    print()
    rows = [(model["name"], model["state"], output.ready(model)) for model in models]
    output.table(("MODEL", "STATE", "READY"), rows, empty="No models yet. `cortex run FILE.gguf` serves one.")


def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay and print what happens.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="So many of the last ones.")] = 50,
    as_json: Json = False,
) -> None:
    """What happened last."""
    with Session.of(context).api() as api:
        found = api.events(limit)
        if as_json and not follow:
            output.as_json(found)
            return
        for event in found:
            _print(event, as_json=as_json)
        if follow:
            seen = {event["id"] for event in found}
            with api.follow_events() as coming:
                for event in coming:
                    if event["id"] not in seen:
                        _print(event, as_json=as_json)


def audit(
    context: typer.Context,
    actor: Annotated[str | None, typer.Option(help="Only what this key asked for.")] = None,
    action: Annotated[
        str | None, typer.Option(help="`model.started`, or `model` for all of its kind.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Only of this: `model/7`.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="So many of the last ones.")] = 50,
    as_json: Json = False,
) -> None:
    """Who changed what, the newest first. For admins."""
    with Session.of(context).api() as api:
        found = api.audit(limit, actor=actor, action=action, target=target)
    if as_json:
        output.as_json(found)
        return
    rows = [
        (change["at"][:19], change["actor"], change["action"], change["target"], change.get("detail") or None)
        for change in found
    ]
    output.table(("AT", "ACTOR", "ACTION", "TARGET", "DETAIL"), rows, empty="Nothing was changed yet.")


def usage(
    context: typer.Context,
    by: Annotated[str | None, typer.Option(help="Group by `model`, `key` or `day`.")] = None,
    since: Annotated[str | None, typer.Option(help="ISO 8601 with a zone.")] = None,
    until: Annotated[str | None, typer.Option(help="ISO 8601 with a zone.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model: name or id.")] = None,
    key: Annotated[str | None, typer.Option(help="Only of this key: name or id.")] = None,
    as_json: Json = False,
) -> None:
    """Requests and tokens, counted once each."""
    filters = {"group_by": by, "from": since, "to": until, "model": model, "key": key}
    with Session.of(context).api() as api:
        found = api.get("/usage", filters)
    if as_json:
        output.as_json(found)
        return
    items = cast("list[dict[str, Any]]", found.get("items") or [])
    total = cast("dict[str, Any] | None", found.get("total"))
    rows = [[item.get(name) for name in _COLUMNS] for item in [*items, *([total] if total else [])]]
    headings = [name.upper().replace("_", " ") for name in _COLUMNS]
    output.table(headings, rows if items else [], empty="Nothing was used yet.")


def _print(event: Event, *, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps(event, ensure_ascii=False), flush=True)
        return
    where = event.get("model") or event.get("node") or ""
    print(
        f"{event['at'][:19]}  {event['level']:<7}  {event['kind']:<24}  {where:<16}  {event['message']}",
        flush=True,
    )
