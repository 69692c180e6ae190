"""The house rules that no linter knows: short files and functions, telling names, imports on top."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("shared", "services", "cli", "images")
FILE_LINES_MAX = 450
FUNCTION_LINES_MAX = 80
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "core"}

# Imports inside functions, with the reason. An entry that no code needs any more fails, too.
_QUICK = "a command that does not need it must not wait for it"
LATE_IMPORTS: dict[tuple[str, str], str] = {
    ("services/gateway/src/cortex_gateway/span_sender.py", "httpx"): "10 MiB, and most send no spans",
    ("cli/src/cortex_cli/commands/chat.py", "cortex_cli.openai_chat"): _QUICK,
    ("cli/src/cortex_cli/commands/doctor.py", "cortex_cli.doctor"): _QUICK,
    ("cli/src/cortex_cli/commands/models.py", "cortex_cli.commands.model_settings"): _QUICK,
    ("cli/src/cortex_cli/commands/models.py", "cortex_cli.progress"): _QUICK,
    ("cli/src/cortex_cli/commands/run.py", "cortex_cli.commands.model_settings"): _QUICK,
    ("cli/src/cortex_cli/commands/run.py", "cortex_cli.commands.system"): _QUICK,
    ("cli/src/cortex_cli/commands/run.py", "cortex_cli.progress"): _QUICK,
    ("cli/src/cortex_cli/commands/run.py", "cortex_cli.served"): _QUICK,
    ("cli/src/cortex_cli/commands/run.py", "cortex_cli.served_folders"): _QUICK,
    ("cli/src/cortex_cli/commands/system.py", "cortex_cli.access"): _QUICK,
    ("cli/src/cortex_cli/commands/system.py", "importlib.metadata"): _QUICK,
    ("cli/src/cortex_cli/commands/watch.py", "json"): _QUICK,
    ("cli/src/cortex_cli/output.py", "rich.console"): _QUICK,
    ("cli/src/cortex_cli/output.py", "rich.table"): _QUICK,
    ("cli/src/cortex_cli/output.py", "rich.text"): _QUICK,
    ("cli/src/cortex_cli/session.py", "cortex_cli.client"): _QUICK,
    ("cli/src/cortex_cli/embedded/launch.py", "pwd"): "only Postgres needs it",
    (
        "cli/src/cortex_cli/first_answer.py",
        "cortex_llamacpp.tiny",
    ): "only the tiny model needs it",
    (
        "services/gateway/src/cortex_gateway/__main__.py",
        "cortex_gateway.alone",
    ): "a gateway of a fleet has no YAML in its memory",
    (
        "images/llamacpp/src/cortex_llamacpp/wheel.py",
        "cortex_llamacpp",
    ): "ctypes, only where libgomp is missing",
    ("services/api/src/cortex_api/db/migrate.py", "alembic"): "10 MiB that only a migration needs",
    ("services/api/src/cortex_api/db/migrate.py", "alembic.config"): "10 MiB that only a migration needs",
    ("services/node-agent/src/cortex_node_agent/download.py", "httpx"): "memory, on hosts that fetch nothing",
    ("services/node-agent/src/cortex_node_agent/gpus.py", "pynvml"): "memory, on hosts without a GPU",
    ("services/node-agent/src/cortex_node_agent/runner.py", "ctypes"): "a runner per engine is kept small",
}


@dataclass(frozen=True)
class Module:
    """A source file, parsed."""

    name: str
    text: str
    tree: ast.Module


@cache
def modules() -> tuple[Module, ...]:
    """All modules of the packages, without generated migrations and without those of one line or none."""
    found: list[Module] = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("**/src/**/*.py")):
            name = path.relative_to(ROOT).as_posix()
            if "/migrations/versions/" in name:
                continue
            text = path.read_text()
            found.append(Module(name, text, ast.parse(text)))
    assert len(found) > 30, "the packages are not where this test looks"
    return tuple(found)


def docstring_problem(module: Module) -> str | None:
    """What is wrong with how a module opens."""
    if not module.tree.body:
        return None  # an empty __init__.py says nothing, and need not
    text = ast.get_docstring(module.tree)
    if text is None:
        return "opens with no docstring"
    first, *rest = text.split("\n")
    if rest and rest[0].strip():
        return "its docstring's first line is not a sentence of its own"
    if not first.strip().endswith((".", "?", "!", ":")):
        return "its docstring's first line does not end"
    return None


def long_functions(module: Module) -> Iterator[str]:
    """Functions over the limit, with their lengths."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{node.name} has {lines} lines"


def late_imports(module: Module) -> Iterator[str]:
    """Modules that functions import."""
    for function in ast.walk(module.tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module or "."


def relative_imports(module: Module) -> Iterator[str]:
    """Imports that begin with a dot."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"from {'.' * node.level}{node.module or ''}"


def test_modules_open_with_one_line_that_says_what_they_are_for() -> None:
    problems = {module.name: docstring_problem(module) for module in modules()}
    assert {name: problem for name, problem in problems.items() if problem} == {}


def test_files_are_short() -> None:
    lengths = {module.name: module.text.count("\n") for module in modules()}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    found = {module.name: list(long_functions(module)) for module in modules()}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_modules_are_named_for_what_they_hold() -> None:
    found = [
        module.name
        for module in modules()
        if FORBIDDEN_NAMES & {part.removesuffix(".py").strip("_") for part in Path(module.name).parts}
    ]
    assert found == []


def test_imports_stand_on_top() -> None:
    found = {(module.name, imported) for module in modules() for imported in late_imports(module)}
    assert found - LATE_IMPORTS.keys() == set(), "import on top, or add it to LATE_IMPORTS with the reason"
    assert LATE_IMPORTS.keys() - found == set(), "no longer needed: take it out of LATE_IMPORTS"
    assert all(LATE_IMPORTS.values()), "every exception has a reason"


def test_imports_are_absolute() -> None:
    found = {module.name: list(relative_imports(module)) for module in modules()}
    assert {name: imports for name, imports in found.items() if imports} == {}


def parsed(text: str) -> Module:
    return Module("m.py", text, ast.parse(text))


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("", False),
        ('"""What it is for."""\n', False),
        ('"""What it is for.\n\nAnd more.\n"""\n', False),
        ("x = 1\n", True),
        ('"""What it is\nfor."""\n', True),
        ('"""no end"""\n', True),
    ],
)
def test_the_docstring_rule_tells_good_from_bad(text: str, bad: bool) -> None:
    assert (docstring_problem(parsed(text)) is not None) == bad


def test_the_other_rules_find_what_they_look_for() -> None:
    module = parsed(
        "def f():\n    import a.b\n    from . import c\n    from ..d import e\n" + "    x = 1\n" * 80
    )
    assert list(late_imports(module)) == ["a.b", ".", "d"]
    assert list(relative_imports(module)) == ["from .", "from ..d"]
    assert list(long_functions(module)) == ["f has 84 lines"]
    assert list(late_imports(parsed("import a\n"))) == []
