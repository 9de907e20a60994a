"""Tables of an experiment: one form for the text, the page, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from supple.bench.statistics import Estimate


class Cell(str):
    """What a table shows, with the figures behind it.

    >>> cell = Cell.of(Estimate(0.5, 0.25, 0.75, 3), ".2f")
    >>> cell, cell.figures
    ('0.50 [0.25, 0.75]', {'value': 0.5, 'lo': 0.25, 'hi': 0.75})
    """

    figures: Mapping[str, float]

    def __new__(cls, text: str, **figures: float) -> Cell:
        made = super().__new__(cls, text)
        made.figures = figures
        return made

    @classmethod
    def of(cls, e: Estimate, form: str) -> Cell:
        """An estimate, with its interval where more than one sample gives one."""
        if e.samples < 2:
            return cls(format(e.value, form), value=e.value)
        text = f"{e.value:{form}} [{e.lo:{form}}, {e.hi:{form}}]"
        return cls(text, value=e.value, lo=e.lo, hi=e.hi)

    def extended(self, more: str, **figures: float) -> Cell:
        """The same with more text and figures behind it."""
        return Cell(self + more, **self.figures, **figures)


@dataclass(frozen=True)
class Table:
    """Rows of cells; ``lead`` is the sentence before it in a text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    lead: str = ""

    def lines(self) -> list[str]:
        """Markdown."""
        head = [_line(self.columns), "|" + "---|" * len(self.columns)]
        return [*([self.lead, ""] if self.lead else []), *head, *map(_line, self.rows)]


def markdown(parts: Sequence[str | Table]) -> str:
    """Paragraphs and tables, an empty line between two of them."""
    return "\n\n".join(p if isinstance(p, str) else "\n".join(p.lines()) for p in parts)


def to_csv(tables: Sequence[Table]) -> str:
    """One line a figure: table, row, column, name of the figure, its value; a cell of words has one line of text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "row", "column", "figure", "value"])
    for table in tables:
        for first, *cells in table.rows:
            for column, cell in zip(table.columns[1:], cells, strict=True):
                figures: Mapping[str, Any] = getattr(cell, "figures", {}) or {"text": cell}
                for name, value in figures.items():
                    writer.writerow([table.title, first, column, name, value])
    return out.getvalue()


def aligned(rows: Sequence[Sequence[str]], least: Sequence[int] = ()) -> list[str]:
    """Rows of a text as lines: the first column to the left, the others to the right, as wide as their longest cell.

    >>> aligned([("method", "n"), ("plain", "10")])
    ['method   n', 'plain   10']

    Args:
        rows: equally long ones. least: widths that columns have at least, so that tables below one another agree.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths = [max(w, *least[i : i + 1], 0) for i, w in enumerate(widths)]
    return [
        "  ".join(
            f"{c:{'>' if i else '<'}{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
