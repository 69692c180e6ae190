"""Tables for people, JSON for programs, errors on standard error."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from cortex_shared.errors import CortexError

from cortex_cli.shapes import Model, Reason

_COLOURS = {
    "running": "green",
    "ready": "green",
    "live": "green",
    "ok": "green",
    "starting": "yellow",
    "loading": "yellow",
    "fetching": "yellow",
    "degraded": "yellow",
    "stopping": "yellow",
    "silent": "yellow",
    "failed": "red",
    "lost": "red",
    "error": "red",
    "warning": "yellow",
}


def as_json(content: object) -> None:
    """Print it as JSON, indented; Unicode as it is."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print columns as wide as they need to be, states in colour; `empty` when there is no row.

    Into a pipe it prints the same columns, uncut and without colour, for `grep` and `awk`.
    """
    if not rows:
        print(empty)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for heading in headings:
        found.add_column(heading, no_wrap=heading != "REASON", overflow="fold")
    for row in rows:
        found.add_row(*(Text(text, style=_COLOURS.get(text, "")) for text in map(shown, row)))
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    console.print(found)


def fields(pairs: Sequence[tuple[str, object]]) -> None:
    """Print names and values below each other; those without a value are left out."""
    kept = [(name, shown(value)) for name, value in pairs if value not in (None, "", [])]
    width = max((len(name) for name, _ in kept), default=0)
    for name, text in kept:
        print(f"{name:<{width}}  {text}")


def shown(value: object) -> str:
    """A cell's text."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(part) for part in value) or "-"  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] (any list)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def error(problem: CortexError) -> None:
    """Message, field and remedy on standard error."""
    where = f" ({problem.field})" if problem.field else ""
    print(f"error: {problem.message}{where}", file=sys.stderr)
    if problem.remedy:
        print(f"remedy: {problem.remedy}", file=sys.stderr)


def age(moment: str | None) -> str:
    """How long ago, in the largest fitting unit: `35s`, `12m`, `3h`, `9d`."""
    if not moment:
        return "-"
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds."""
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def reason(found: Reason | None) -> str:
    """Message and remedy in one line; empty if there is none."""
    return f"{found['message']}; {found.get('remedy') or ''}".strip("; ") if found else ""


def ready(model: Model) -> str:
    """How many of a model's replicas, or of its servers, are ready: `1/2`."""
    wanted = len(model.get("endpoints") or []) or model["replicas"]
    return f"{model.get('ready_replicas', 0)}/{wanted}"


def gibibytes(mebibytes: int | None) -> str:
    """MiB as GiB with one decimal."""
    return "-" if mebibytes is None else f"{mebibytes / 1024:.1f} GiB"
