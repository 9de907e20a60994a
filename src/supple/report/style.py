"""How every figure looks, and how it becomes inline SVG: the same bytes for the same numbers.

Text and axes take the colour of the page (``currentColor``), so that one file reads well on light and dark
backgrounds and in print. Lines differ by colour (near Okabe and Ito's palette), dash and marker.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the colour of the page's text
FAINT = "#010204"  # the same, weaker: grids
CYCLE = ("#2E86C8", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7F7F7F")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: what an arm is in the story -> its place in the cycle, the same in every figure
ROLE_PLACE = {"worn": 1, "reference": 0, "prescribed": 2, "famous": 3, "mismatched": 4, "linear": 6}

RC: dict[str, Any] = {
    "svg.hashsalt": "supple",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}


@dataclass(frozen=True)
class Svg:
    """One figure ready for the page: markup, the result in words, a longer description, the numbers."""

    name: str
    markup: str
    heading: str
    caption: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@contextmanager
def figure(width: float = 9.2, height: float = 3.8, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with its axes in a row, drawn without a display and without global state left behind."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Fig

    with matplotlib.rc_context(RC):
        drawn = Fig(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(drawn)
        drawn.patch.set_alpha(0)
        axes = [drawn.add_subplot(1, columns, i + 1) for i in range(columns)]
        for ax in axes:
            ax.patch.set_alpha(0)
        yield drawn, axes


def to_svg(drawn: Figure, name: str, label: str) -> str:
    """The figure as an ``<svg>`` element: no prologue, no date, ids that are unique on the page.

    Must be called inside the `figure` context.
    """
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor").replace(FAINT, "currentColor; stroke-opacity: 0.18")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    # The browser sizes the drawing; the viewBox keeps its proportions.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label, quote=True)}"', 1)


def save(drawn: Figure, folder: Path | None, name: str) -> None:
    """The figure as ``name.svg`` and ``name.png`` in a folder, on white; nothing without a folder."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for ax in drawn.axes for line in (*ax.get_xgridlines(), *ax.get_ygridlines())]
    for line in lines:  # on the page the grid is made faint by its colour, see `to_svg`
        line.set_alpha(0.18)
    for kind in ("svg", "png"):
        fixed: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 200}
        drawn.savefig(folder / f"{name}.{kind}", facecolor="white", transparent=False, **fixed)
    for line in lines:
        line.set_alpha(None)


def look(place: int) -> dict[str, Any]:
    """Colour, dash and marker number ``place`` of the cycle, as keywords of ``Axes.plot``."""
    return {"color": CYCLE[place % len(CYCLE)], "linestyle": DASHES[place % len(DASHES)]}


def turn(place: int) -> dict[str, Any]:
    """As `look`, but in the second round of colours with the next dash."""
    return {**look(place), "linestyle": DASHES[(place + place // len(CYCLE)) % len(DASHES)]}


def cross(
    ax: Axes, x: tuple[float, float, float], y: tuple[float, float, float], place: int, title: str
) -> None:
    """A point with bars both ways, each side as (value, low, high); ``place`` in the cycle is its colour and marker."""
    ax.errorbar(
        [x[0]],
        [y[0]],
        xerr=[[x[0] - x[1]], [x[2] - x[0]]],
        yerr=[[y[0] - y[1]], [y[2] - y[0]]],
        fmt=MARKERS[(place + place // len(CYCLE)) % len(MARKERS)],
        color=look(place)["color"],
        markersize=9,
        elinewidth=1.4,
        capsize=3,
        label=title,
    )


def number(value: float, digits: int = 3) -> str:
    """A number for a table: fixed digits, a dash where there is none.

    >>> number(0.83251), number(float("nan")), number(float("inf"))
    ('0.833', '–', 'inf')
    """
    if value != value:
        return "–"
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.3g}"
