"""Which lines of the gateway the fuzzer's corpus reaches: python -m tests.fuzz.coverage prints a table."""

import gc
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

HOT = (
    *(
        "protocol",
        "incoming",
        "heads",
        "pipeline",
        "exchange",
        "rerouting",
        "attempts",
        "answering",
        "ending",
    ),
    *(
        "relay",
        "typed",
        "chunks",
        "sse",
        "upstream",
        "table",
        "line",
        "balance",
        "sweep",
        "wire",
        "body",
        "paths",
    ),
)
"""The modules whose callbacks the fuzzer drives."""
CORPUS = Path(__file__).parent / "corpus"
_TOOL = 4


def reached(inputs: list[bytes]) -> dict[str, tuple[int, int]]:
    """By module: lines that these inputs reach, and all lines of functions."""
    monitoring = sys.monitoring
    lines: set[tuple[str, int]] = set()

    def line(code: CodeType, number: int) -> object:
        lines.add((code.co_filename, number))
        return monitoring.DISABLE

    monitoring.use_tool_id(_TOOL, "cortex-fuzz")
    monitoring.register_callback(_TOOL, monitoring.events.LINE, line)
    from tests.fuzz.script import run

    monitoring.set_events(_TOOL, monitoring.events.LINE)
    try:
        for data in inputs:
            run(data)
    finally:
        monitoring.set_events(_TOOL, 0)
        monitoring.free_tool_id(_TOOL)
    found: dict[str, tuple[int, int]] = {}
    for name in HOT:
        file = sys.modules[f"cortex_gateway.{name}"].__file__
        assert file is not None
        wanted = set(_lines(compile(Path(file).read_bytes(), file, "exec")))
        found[name] = (len(wanted & {number for where, number in lines if where == file}), len(wanted))
    return found


def least(inputs: list[bytes]) -> list[bytes]:
    """Of these the ones, shortest first, that reach a line or take a branch that none before them did."""
    monitoring = sys.monitoring
    new = 0

    def seen(*_: object) -> object:
        nonlocal new
        new += 1
        return monitoring.DISABLE

    events = monitoring.events
    from tests.fuzz.script import run

    files = [sys.modules[f"cortex_gateway.{name}"] for name in HOT]
    codes = [code for module in files for code in _codes_of(module)]
    monitoring.use_tool_id(_TOOL, "cortex-fuzz")
    monitoring.register_callback(_TOOL, events.LINE, seen)
    monitoring.register_callback(_TOOL, events.BRANCH, _branches := _Branches())
    for code in codes:
        monitoring.set_local_events(_TOOL, code, events.LINE | events.BRANCH)
    kept: list[bytes] = []
    try:
        for data in sorted(inputs, key=len):
            before = new + len(_branches.taken)
            run(data)
            if new + len(_branches.taken) > before:
                kept.append(data)
    finally:
        for code in codes:
            monitoring.set_local_events(_TOOL, code, 0)
        monitoring.free_tool_id(_TOOL)
    return kept


class _Branches:
    # Each branch has two ways, so its event stays on until both were gone.
    def __init__(self) -> None:
        self.taken: set[tuple[CodeType, int, int]] = set()

    def __call__(self, code: CodeType, offset: int, to: int) -> None:
        self.taken.add((code, offset, to))


def _codes_of(module: ModuleType) -> Iterator[CodeType]:
    assert module.__file__ is not None
    for found in gc.get_objects():
        if isinstance(found, FunctionType) and found.__code__.co_filename == module.__file__:
            yield found.__code__


def _lines(code: CodeType) -> Iterator[int]:
    # Those of functions: a module's and a class's own run when they are imported.
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 0x2:  # CO_NEWLOCALS: a function, no class body
                yield from (
                    n for _, _, n in constant.co_lines() if n is not None and n != constant.co_firstlineno
                )
            yield from _lines(constant)


def keep(found: Path) -> None:
    """Add what another folder has to the corpus, as far as it reaches something new."""
    inputs = {path.read_bytes() for folder in (CORPUS, found) for path in folder.iterdir()}
    for path in CORPUS.iterdir():
        path.unlink()
    for data in least(sorted(inputs)):
        (CORPUS / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def main() -> None:
    """Print the table; first keep what the folder has that is named."""
    if len(sys.argv) > 1:
        keep(Path(sys.argv[1]))
    corpus = sorted(CORPUS.iterdir())
    table = reached([path.read_bytes() for path in corpus])
    print(f"{len(corpus)} inputs, {sum(path.stat().st_size for path in corpus)} bytes")
    print(f"{'module':12} {'reached':>8} {'lines':>6} {'share':>6}")
    for name, (hit, total) in table.items():
        print(f"{name:12} {hit:8} {total:6} {hit / max(1, total):6.0%}")
    hits, totals = (sum(column) for column in zip(*table.values(), strict=True))
    print(f"{'all':12} {hits:8} {totals:6} {hits / totals:6.0%}")


if __name__ == "__main__":
    main()
