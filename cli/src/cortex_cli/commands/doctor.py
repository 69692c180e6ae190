"""`cortex doctor`: looks at this machine and says what is wrong, with remedies."""

from dataclasses import asdict

import typer

from cortex_cli import output
from cortex_cli.commands.options import HomeFolder, Json
from cortex_cli.session import Session

_SIGNS = {"ok": "ok", "note": "note", "bad": "WRONG"}


def doctor(context: typer.Context, home: HomeFolder = None, as_json: Json = False) -> None:
    """What this machine can do and what is wrong. Exit code 1 if something is."""
    from cortex_cli.doctor import installed, machine, system

    place = Session.of(context).home(home)
    findings = [
        machine.processor(),
        machine.memory(),
        machine.disk(place.path),
        machine.gpus(),
        machine.user_namespaces(),
        machine.open_files(),
        *installed.engines(),
        *installed.servers(),
        system.home(place),
        *system.running(place),
    ]
    wrong = [finding for finding in findings if finding.level == "bad"]
    if as_json:
        output.as_json({"ok": not wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{_SIGNS[finding.level]:<5}  {finding.what:<{width}}  {finding.text}")
            if finding.remedy:
                print(f"{'':<7}{'':<{width}}  remedy: {finding.remedy}")
        print(
            f"\n{len(wrong)} things are wrong."
            if len(wrong) > 1
            else "\nOne thing is wrong."
            if wrong
            else "\nAll is well."
        )
    if wrong:
        raise typer.Exit(1)
