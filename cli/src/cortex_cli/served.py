"""From what a person calls a model (a file, hf:org/repo, a name) to a model that runs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cortex_shared.errors import Conflict, InvalidInput, NotFound

from cortex_cli.client import Api
from cortex_cli.shapes import Json, Model

DEFAULT_QUANT = "Q4_K_M"
_HUGGING_FACE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(:(?P<what>[^:]+))?")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class Wanted:
    """`body` are the fields that say what it is; `file` is a local file; None: an existing model's name."""

    name: str
    body: Json | None = None
    file: Path | None = None


def read_wanted(text: str) -> Wanted:
    """What MODEL of `cortex run` means. Raises InvalidInput."""
    found = _HUGGING_FACE.fullmatch(text)
    if found:
        what = found["what"] or DEFAULT_QUANT
        filename = what if what.endswith(".gguf") else f"*{what}*.gguf"
        body = {"engine_type": "llamacpp", "repo_id": found["repo"], "filename": filename}
        return Wanted(_name(found["repo"].rpartition("/")[2]), body)
    if text.startswith("hf:"):
        raise InvalidInput(
            f"{text!r} is no Hugging Face repository.",
            code="cli.bad_model",
            field="MODEL",
            remedy="Write hf:org/repo, hf:org/repo:Q4_K_M or hf:org/repo:file.gguf.",
        )
    path = Path(text).expanduser()
    if path.exists() or "/" in text or text.endswith(".gguf"):
        if not path.exists():
            raise InvalidInput(
                f"There is no file {path}.", code="cli.no_file", field="MODEL", remedy="Check the path."
            )
        path = path.resolve()
        if path.is_dir():
            raise InvalidInput(
                f"{path} is a folder.", code="cli.folder", field="MODEL", remedy="Name a .gguf file in it."
            )
        return Wanted(_name(path.stem), {"engine_type": "llamacpp", "local_path": str(path)}, path)
    return Wanted(text)


def ensure_model(api: Api, wanted: Wanted, settings: Mapping[str, object], *, name: str | None) -> Model:
    """The model, made if it is not there. Raises Conflict if it is there and differs, or NotFound."""
    called = name or wanted.name
    try:
        there = api.model(called)
    except NotFound:
        if wanted.body is None:
            raise NotFound(
                f"There is no model {called!r}, and no file of that name.",
                code="cli.no_model",
                field="MODEL",
                remedy="`cortex models list` shows what there is; a file is named by its path, "
                "a repository as hf:org/repo.",
            ) from None
        return api.create_model({"name": called, **wanted.body, **settings})
    asked = {**(wanted.body or {}), **settings}
    different = [field for field, value in asked.items() if there.get(field) != value]
    if different:
        raise Conflict(
            f"There is a model {called!r} with another {', '.join(different)}.",
            code="cli.model_differs",
            field=different[0],
            remedy=f"Choose another --name, or change it: `cortex models patch {called} --set ...`.",
        )
    return there


def _name(text: str) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", _SPLIT.sub("", text).lower().removesuffix("-gguf")).strip("-._")
    return name[:63] or "model"
