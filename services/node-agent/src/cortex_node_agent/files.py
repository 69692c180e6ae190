"""Model files: where a plan's files lie under this host's model roots, and whether they can be used."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cortex_shared.contracts.plan import ModelFile
from cortex_shared.errors import Forbidden, InvalidInput, NotFound
from cortex_shared.gguf import BadGguf, GgufInfo, inspect
from cortex_shared.logs import get_logger

_log = get_logger("files")

_ENTRIES_MAX = 20_000


class ModelRoots:
    """The folders in which models may lie. Nothing outside is read, wherever a symbolic link leads."""

    def __init__(self, roots: Sequence[Path], further: Path | None = None) -> None:
        """The first root takes downloads. A root need not exist yet.

        `further`: a file `{"roots": [...]}` of more roots, looked at whenever roots are needed.
        """
        self._told = [Path(os.path.abspath(root)) for root in roots]
        self._further = further

    @property
    def paths(self) -> list[Path]:
        """All roots now."""
        return [*self._told, *_read_roots(self._further)] if self._further else self._told

    def locate(self, path: str) -> Path:
        """The absolute path of a file or folder that a plan names; its links are left as they are.

        Raises Forbidden (`outside_roots`) and NotFound (`no_file`). Touches the disk.
        """
        if "\0" in path:
            raise InvalidInput("a path with a zero byte", code="bad_file", field="path")
        candidates = [Path(path)] if os.path.isabs(path) else [root / path for root in self.paths]
        inside = [found for found in map(_normal, candidates) if self.contains(found)]
        if not inside:
            raise Forbidden(
                f"{path} lies outside this host's model folders ({self._shown()})",
                code="outside_roots",
                field="local_path",
                remedy="move it there, or add its folder to the agent's model roots (--model-root)",
            )
        for found in inside:
            try:
                if found.exists():
                    return found
            except OSError as error:  # a folder on the way that may not be searched, a name too long
                raise _bad(
                    f"{path} cannot be looked at: {error.strerror}", "let the agent's user read it"
                ) from error
        raise NotFound(
            f"there is no {path} on this host (looked in {self._shown()})",
            code="no_file",
            field="local_path",
            remedy="check the path, or copy the file to this host",
        )

    def contains(self, path: Path) -> bool:
        """Whether what `path` really is lies under a root."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(os.path.realpath(root)) for root in self.paths)

    def check(self, path: Path, kind: str) -> GgufInfo | None:
        """See that a located file can be used as `gguf`, `folder` or `file`; what a GGUF says of itself.

        Raises InvalidInput (`bad_file`) and Forbidden (`outside_roots`). Reads headers only; blocks.
        """
        if kind == "folder":
            if not path.is_dir():
                raise _bad(f"{path} is not a folder", "name the folder that holds the model")
            if not os.access(path, os.R_OK | os.X_OK):
                raise _unreadable(path)
            return None
        if kind == "gguf":
            try:
                info = inspect(path)
            except BadGguf as error:
                raise _bad(error.reason, error.remedy) from error
            if not all(self.contains(part) for part in info.files):
                raise Forbidden(
                    f"a part of {path} lies outside this host's model folders ({self._shown()})",
                    code="outside_roots",
                    field="local_path",
                    remedy="keep all parts of a model in one folder under a model root",
                )
            return info
        if not path.is_file():
            raise _bad(f"{path} is not a file", "name the file itself")
        if not os.access(path, os.R_OK):
            raise _unreadable(path)
        return None

    @staticmethod
    def size_bytes(path: Path) -> int | None:
        """Of a file, or of all files in a folder; None when it cannot be known, or would take too long."""
        if path.is_file():
            return path.stat().st_size
        total = 0
        for count, entry in enumerate(path.rglob("*")):
            if count >= _ENTRIES_MAX:
                return None
            try:
                total += entry.stat().st_size if entry.is_file() else 0
            except OSError:
                return None
        return total

    def find(self, file: ModelFile) -> Path:
        """Locate and check a file that names a path. Errors as `locate` and `check`; blocks."""
        assert file.path is not None
        path = self.locate(file.path)
        self.check(path, file.format)
        return path

    def _shown(self) -> str:
        return ", ".join(str(root) for root in self.paths) or "none"


def _read_roots(path: Path) -> list[Path]:
    try:
        found: Any = json.loads(path.read_text())
        return [Path(root) for root in found["roots"] if os.path.isabs(root)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("roots.unreadable", path=str(path), error=str(error))
        return []


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _bad(message: str, remedy: str) -> InvalidInput:
    return InvalidInput(message, code="bad_file", field="local_path", remedy=remedy)


def _unreadable(path: Path) -> InvalidInput:
    return _bad(f"{path} is not readable", "let the agent's user read it")
