"""The list of folders outside the home that the local node may read models in, too."""

from pathlib import Path
from typing import cast

from cortex_cli.embedded.layout import Home, read_json, write_json

_FOLDERS_MAX = 256


def roots_file(home: Home) -> Path:
    """Where the list is; the node's agent looks at it whenever it needs a model."""
    return home.nodes / "roots.json"


def register_folder(home: Home, file: Path) -> None:
    """Add the folder of `file` (a resolved path); the oldest go when there are more than 256."""
    if file.is_relative_to(home.models.resolve()):
        return
    path, folder = roots_file(home), str(file.parent)
    known = cast("list[str]", read_json(path).get("roots") or [])
    if folder not in known:
        write_json(path, {"roots": [*known, folder][-_FOLDERS_MAX:]})
