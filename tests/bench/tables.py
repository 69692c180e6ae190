"""Tables in Markdown, and figures with their bars beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """A figure with a bar: `value` should be at most `bar`, at best at most `aim` (at least, if `least`)."""

    figure: str
    value: float | None
    bar: float
    aim: float
    form: str = "{:.2f} x"
    note: str = ""
    least: bool = False

    def verdict(self) -> str:
        """aim, bar or missed; a dash where it was not measured."""
        if self.value is None:
            return "-"
        sign = -1 if self.least else 1
        if sign * self.value <= sign * self.aim:
            return "aim"
        return "bar" if sign * self.value <= sign * self.bar else "**missed**"

    def cells(self) -> list[str]:
        """Figure, measured, bar, aim, verdict."""
        sign = "≥" if self.least else "≤"
        value = "-" if self.value is None else self.form.format(self.value)
        bar, aim = self.form.format(self.bar), self.form.format(self.aim)
        return [self.figure, f"{value}{self.note}", f"{sign} {bar}", f"{sign} {aim}", self.verdict()]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it reads as text, too."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, *rows]
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def bars(rows: Sequence[Row]) -> str:
    """The table of figures that have a bar."""
    return table(("figure", "measured", "bar", "aim", "holds"), [row.cells() for row in rows])


@dataclass(frozen=True, slots=True)
class Section:
    """What one part of a benchmark found; `plain` is everything that it measured, for JSON."""

    title: str
    rows: list[Row]
    text: list[str]
    plain: dict[str, object] = field(default_factory=dict[str, object])

    def markdown(self) -> str:
        """A section of a page."""
        return "\n\n".join([f"## {self.title}", *([bars(self.rows)] if self.rows else []), *self.text]) + "\n"
