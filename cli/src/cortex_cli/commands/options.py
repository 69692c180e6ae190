"""Options that many commands share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
HomeFolder = Annotated[
    Path | None, typer.Option("--home", help="The folder that holds everything; default: CORTEX_HOME.")
]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name or id of a model.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the model or its engine; may be repeated."),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE.json", help="Settings as a JSON object; - reads it."),
]
