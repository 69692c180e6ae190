"""`cortex models`: what should be served, and how it is doing."""

import json
import sys
from typing import Annotated

import typer

from cortex_cli import output
from cortex_cli.commands.options import Json, ModelName, Settings, SettingsFile
from cortex_cli.session import Session
from cortex_cli.shapes import Model

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until it is done.")]


Engine = Annotated[str | None, typer.Option(help="llamacpp (understood for a .gguf file), vllm or external.")]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        metavar="URL[,KEY=VALUE...]",
        help="A server that others run: model, weight, health_path, tls_verify, api_key_file, ca_file; may be"
        " repeated.",
    ),
]


def list_models(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    as_json: Json = False,
) -> None:
    """All models with their states."""
    with Session.of(context).api() as api:
        found = api.models(state=state)
    if as_json:
        output.as_json(found)
        return
    rows = [
        (
            model["id"],
            model["name"],
            model["served_model_name"],
            model["engine_type"],
            model["state"],
            output.ready(model),
            reason_text(model),
        )
        for model in found
    ]
    headings = ("ID", "NAME", "SERVED AS", "ENGINE", "STATE", "READY", "REASON")
    output.table(headings, rows, empty="No models yet. `cortex run FILE.gguf` serves one.")


def show(context: typer.Context, model: ModelName, as_json: Json = False) -> None:
    """One model with all its settings and replicas."""
    with Session.of(context).api() as api:
        found = api.model(model)
    if as_json:
        output.as_json(found)
        return
    nested = ("instances", "state_reason", "endpoints")
    pairs = [(name, value) for name, value in found.items() if name not in nested]
    output.fields(pairs)
    if found.get("state_reason"):
        output.fields([("reason", reason_text(found))])
    _show_endpoints(found)
    for instance in found.get("instances") or []:
        print()
        output.fields(list(instance.items()))


def create(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="The model's name.")] = None,
    settings: Settings = None,
    file: SettingsFile = None,
    engine: Engine = None,
    endpoint: Endpoints = None,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    as_json: Json = False,
) -> None:
    """A new model, stopped. Its fields: `cortex models create NAME --set local_path=x.gguf --set ngl=99`.

    Of one that others serve: `cortex models create NAME --endpoint https://host:8000,api_key_file=KEY`.
    """
    from cortex_cli.commands.model_settings import new_model_body

    with Session.of(context).api() as api:
        body = new_model_body(api, settings, file, engine, endpoint)
        if name is not None:
            body["name"] = name
        found = api.create_model(body)
        if start:
            warnings = found.get("warnings")
            found = api.start_model(str(found["id"]))
            found["warnings"] = warnings
    _say(found, "created" + (" and started" if start else ""), as_json=as_json)


def patch(
    context: typer.Context,
    model: ModelName,
    settings: Settings = None,
    file: SettingsFile = None,
    endpoint: Endpoints = None,
    as_json: Json = False,
) -> None:
    """Change settings; replicas that run are replaced where they must be. Endpoints change all at once."""
    from cortex_cli.commands.model_settings import endpoints_of, read_body, schema_of

    with Session.of(context).api() as api:
        schema = schema_of(api, api.model(model)["engine_type"])
        change = read_body(settings, file, schema)
        if endpoint:
            change["endpoints"] = endpoints_of(endpoint, schema)
        found = api.patch_model(model, change)
    _say(found, "changed", as_json=as_json)


def start(context: typer.Context, model: ModelName, wait: Wait = True, as_json: Json = False) -> None:
    """Run it, and show how it comes up. Exit code 7 if it fails."""
    from cortex_cli.progress import until_running

    with Session.of(context).api() as api:
        found = api.start_model(model)
        if wait:
            found = until_running(api, str(found["id"]), quiet=as_json)
    _say(found, "runs" if wait else "is to start", as_json=as_json)


def stop(context: typer.Context, model: ModelName, wait: Wait = True, as_json: Json = False) -> None:
    """Stop it: open requests may finish."""
    from cortex_cli.progress import until_stopped

    with Session.of(context).api() as api:
        found = api.stop_model(model)
        if wait:
            found = until_stopped(api, str(found["id"]), quiet=as_json)
    _say(found, "has stopped" if wait else "is to stop", as_json=as_json)


def delete(
    context: typer.Context,
    model: ModelName,
    stop_first: Annotated[bool, typer.Option("--stop", help="Stop it first if it runs.")] = False,
) -> None:
    """Forget a model. Its files stay."""
    with Session.of(context).api() as api:
        api.delete_model(model, stop=stop_first)
    print(f"{model} is deleted; its files stay where they are.")


def logs(
    context: typer.Context,
    model: ModelName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay and print what comes.")] = False,
    tail: Annotated[int, typer.Option(min=0, max=100_000, help="So many lines of before.")] = 200,
) -> None:
    """What its engines say."""
    with Session.of(context).api() as api, api.model_logs(model, tail=tail, follow=follow) as lines:
        for line in lines:
            print(line, flush=follow)


def dry_run(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="An existing model.")] = None,
    settings: Settings = None,
    file: SettingsFile = None,
    engine: Engine = None,
    endpoint: Endpoints = None,
    as_json: Json = False,
) -> None:
    """The exact plan and where it would run, without running it: of a model, or of settings alone."""
    from cortex_cli.commands.model_settings import new_model_body

    with Session.of(context).api() as api:
        given = settings or file or endpoint or not model
        body = new_model_body(api, settings, file, engine, endpoint) if given else None
        found = api.dry_run(model, body)
    if as_json or not sys.stdout.isatty():
        output.as_json(found)
        return
    for name, value in found.items():
        print(f"{name}:")
        print("  " + json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  "))


def reason_text(model: Model) -> str:
    """The reason of its state in one line; empty if there is none."""
    return output.reason(model.get("state_reason"))


def _show_endpoints(model: Model) -> None:
    endpoints = model.get("endpoints") or []
    if not endpoints:
        return
    print()
    rows = [
        (
            endpoint["url"],
            endpoint.get("state"),
            endpoint.get("weight"),
            endpoint.get("model"),
            endpoint.get("api_key_set"),
            output.milliseconds(endpoint.get("latency_seconds")),
            output.age(endpoint.get("checked_at")),
            output.reason(endpoint.get("reason")),
        )
        for endpoint in endpoints
    ]
    headings = ("ENDPOINT", "STATE", "WEIGHT", "MODEL", "KEY", "LATENCY", "CHECKED", "REASON")
    output.table(headings, rows, empty="")


def _say(model: Model, done: str, *, as_json: bool) -> None:
    if as_json:
        output.as_json(model)
    else:
        print(f"{model['name']} {done} ({model['state']}).")
    for warning in model.get("warnings") or []:
        print(f"warning: {warning}", file=sys.stderr)
