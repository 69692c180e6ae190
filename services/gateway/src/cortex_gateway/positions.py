"""YAML with positions: a document as plain values, and the line on which each of them stands."""

import re
from typing import cast

import yaml
from cortex_shared.errors import InvalidInput
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

type Path = tuple[str | int, ...]

# An alias repeats what it names: a few lines of them could otherwise grow without end.
VALUES_MAX = 200_000
_DEPTH_MAX = 32


type _Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]


def _resolvers() -> _Resolvers:
    # YAML 1.2's plain values: `no` and `on` are text, as are dates, and 1:30 is no number.
    found: _Resolvers = {}
    power = "[eE][-+]?[0-9]+"
    for kind, first, spelling in (
        ("bool", "tTfF", r"true|True|TRUE|false|False|FALSE"),
        ("int", "-+0123456789", r"[-+]?(0|[1-9][0-9]*)"),
        (
            "float",
            "-+.0123456789",
            rf"[-+]?(([0-9]*\.[0-9]+|[0-9]+\.)({power})?|[0-9]+{power})",
        ),
        ("merge", "<", r"<<"),
        ("null", "~nN", r"~|null|Null|NULL"),
    ):
        for character in first:
            found.setdefault(character, []).append(
                (f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{spelling})\Z"))
            )
    found[""] = [("tag:yaml.org,2002:null", re.compile(r"\Z"))]
    return found


class _Loader(yaml.CSafeLoader):
    # libyaml's reader: the one in Python takes a second for a thousand routes.
    yaml_implicit_resolvers = _resolvers()


class Unreadable(InvalidInput):
    """The text is no YAML document that is taken; `line` counts from 1."""

    def __init__(self, line: int, reason: str, remedy: str, field: str | None = None) -> None:
        super().__init__(reason, code="routes_file.unreadable", field=field, remedy=remedy)
        self.line = line


class Document:
    """One document: `value`, and lines by path."""

    def __init__(self, data: bytes) -> None:
        """Raises Unreadable."""
        self._lines: dict[Path, int] = {}
        self._left = VALUES_MAX
        self.value: object = None
        try:
            self._read(data.decode())
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise Unreadable(line, "this is not UTF-8 text", "save the file as UTF-8") from error
        except ReaderError as error:
            line = data.decode()[: error.position].count("\n") + 1
            reason = f"the character {error.character!r} may not stand in YAML"
            raise Unreadable(line, reason, "remove it") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            reason = " ".join(part for part in (error.context, error.problem) if part)
            line = mark.line + 1 if mark is not None else 1
            raise Unreadable(line, f"this is not YAML: {reason}", _remedy(data, line)) from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise Unreadable(1, f"this is not YAML: {error}", "put text in quotes") from error

    def line(self, path: Path) -> int:
        """The line of a value, or of the nearest that holds it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def _read(self, text: str) -> None:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                self._walk(node, ())
                self.value = loader.construct_document(node)
        finally:
            loader.dispose()

    def _walk(self, node: Node, path: Path) -> None:
        line = node.start_mark.line + 1
        self._left -= 1
        if self._left < 0 or len(path) > _DEPTH_MAX:
            raise Unreadable(line, "the document is too large", "write less of it, without aliases (*name)")
        self._lines.setdefault(path, line)
        if isinstance(node, SequenceNode):
            for at, item in enumerate(cast("list[Node]", node.value)):
                self._walk(item, (*path, at))
        elif isinstance(node, MappingNode):
            self._walk_mapping(node, path)

    def _walk_mapping(self, node: MappingNode, path: Path) -> None:
        seen: dict[str, int] = {}
        for key, value in cast("list[tuple[Node, Node]]", node.value):
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                raise Unreadable(line, "a field's name must be text", "write `name: value`")
            name = cast("str", key.value)
            if name in seen:
                raise Unreadable(
                    line,
                    f"given twice, first on line {seen[name]}",
                    "keep one of the two",
                    field=shown((*path, name)),
                )
            seen[name] = line
            self._walk(value, (*path, name))
            # Where a person looks for a field is where its name stands.
            self._lines[(*path, name)] = line


def _remedy(data: bytes, line: int) -> str:
    if b"${" in b"".join(data.split(b"\n")[line - 1 : line]):
        return 'put "${NAME}" in quotes, since braces mean something in YAML'
    return "mind the indentation, and put text with special characters in quotes"


def shown(path: Path) -> str:
    """A path as people write it: routes[0].endpoints[1].url."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
