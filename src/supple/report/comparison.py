"""The page of a comparison: every protocol with its courses over tasks, its instruments and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from supple.report.data import Spread
from supple.report.overall import OverallPart, profiles
from supple.report.style import MARKERS, Svg, cross, figure, look, number, save, to_svg, turn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: share of the tasks over which a course is smoothed
SMOOTH_SHARE = 0.05
#: with more methods than this their bands would hide one another
MOST_BANDS = 6
#: instruments that are drawn where they were measured: record -> what the axis says
INSTRUMENTS: Mapping[str, str] = {
    "dead": "dead units",
    "grama (preactivation,tau=0.025)": "units without gradient",
    "effective_rank (relative)": "effective rank of weights",
    "sigma_ratio": "σ₁ / Σσ",
    "ntk_rank99 (relative)": "rank of the tangent kernel",
    "churn (relative)": "churn",
}


@dataclass(frozen=True)
class Course:
    """One method: the metric by seed and task, instruments as (tasks, by seed and look), what is kept by seed.

    ``kept`` is the metric on earlier tasks after the last one; empty where it was not asked for.
    """

    title: str
    online: Sequence[Sequence[float]]
    instruments: Mapping[str, tuple[Sequence[int], Sequence[Sequence[float]]]] = field(default_factory=dict)
    kept: Sequence[float] = ()


@dataclass(frozen=True)
class Comparison:
    """One protocol: courses by method in the order of the table, and the table itself as text cells."""

    label: str
    metric: str
    courses: Mapping[str, Course]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def bands(self) -> bool:
        """Whether there are few enough methods for bands to be told apart."""
        return len(self.courses) <= MOST_BANDS

    @property
    def tasks(self) -> int:
        return max((len(seed) for c in self.courses.values() for seed in c.online), default=0)


@dataclass(frozen=True)
class ComparisonPage:
    """All protocols of a folder, and what was left out with the reason; ``words`` stand before them."""

    protocols: Sequence[Comparison | OverallPart]
    left_out: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    words: Sequence[str] = ()


def write_comparison(page: ComparisonPage, path: str | Path) -> Path:
    """The page as one HTML file, complete in itself."""
    from supple.report.page import write

    parts = [(p, [d for d in drawings(p) if d is not None]) for p in page.protocols]
    names = ", ".join(p.label for p in page.protocols)
    return write(path, "comparison.html", title=f"Comparison: {names}", page=page, parts_of=parts)


def drawings(part: Comparison | OverallPart, folder: Path | None = None) -> list[Svg | None]:
    """The figures of one part; with a folder also as SVG and PNG files in it. None where nothing was measured."""
    if isinstance(part, OverallPart):
        return [profiles(part, len(part.profiles) <= MOST_BANDS, folder)]
    if not part.courses:
        return []
    return [courses(part, folder), levels(part, folder), tradeoff(part, folder), instruments(part, folder)]


def courses(part: Comparison, folder: Path | None = None) -> Svg:
    """The online metric over tasks, one line a method."""
    width = max(1, round(SMOOTH_SHARE * part.tasks))
    counts = sorted({len(c.online) for c in part.courses.values()})
    seeds = " to ".join(dict.fromkeys(map(str, (counts[0], counts[-1]))))
    smooth = f"running mean of {width} tasks" if width > 1 else "task by task"
    heading = f"{part.label}: online {part.metric} over {part.tasks} tasks"
    caption = f"Each batch before it was learned, {smooth}. Line: mean of {seeds} seeds{_band(part)}."
    with figure(height=4.4) as (drawn, (ax,)):
        for place, course in enumerate(part.courses.values()):
            smoothed = [_running(s, width) for s in course.online]
            _line(ax, range(1, part.tasks + 1), smoothed, course.title, place, part.bands)
        ax.set_xlabel("task")
        ax.set_ylabel(f"online {part.metric}")
        ax.margins(x=0.01)
        drawn.legend(loc="outside right upper", handlelength=2.6, fontsize=9)
        name = f"{part.label}-courses"
        save(drawn, folder, name)
        return Svg(
            name, to_svg(drawn, name, heading), heading, caption, tuple(part.columns), _cells(part.rows)
        )


def levels(part: Comparison, folder: Path | None = None) -> Svg:
    """The last tenth of the tasks: a point a seed, a bar for the mean, best method on top."""
    tail = max(1, part.tasks // 10)
    found = {c.title: [Spread.of(s[-tail:]).mean for s in c.online] for c in part.courses.values()}
    order = sorted(found, key=lambda t: Spread.of(found[t]).mean)
    heading = f"{part.label}: {order[-1]} ends highest ({number(Spread.of(found[order[-1]]).mean, 2)})"
    caption = f"Mean of the last {tail} task(s); one point a seed, the tick is their mean."
    with figure(height=0.6 + 0.28 * len(order)) as (drawn, (ax,)):
        for y, title in enumerate(order):
            place = list(found).index(title)
            style = {"color": look(place)["color"], "marker": MARKERS[place % len(MARKERS)]}
            ax.plot(found[title], [y] * len(found[title]), linestyle="none", alpha=0.6, **style)
            ax.plot([Spread.of(found[title]).mean], [y], marker="|", markersize=16, color=style["color"])
        ax.set_yticks(range(len(order)), order)
        ax.set_ylim(-0.6, len(order) - 0.4)
        ax.set_xlabel(f"online {part.metric}, last tenth")
        name = f"{part.label}-levels"
        save(drawn, folder, name)
        rows = tuple((t, number(Spread.of(found[t]).mean), str(len(found[t]))) for t in reversed(order))
        return Svg(name, to_svg(drawn, name, heading), heading, caption, ("method", "mean", "seeds"), rows)


def tradeoff(part: Comparison, folder: Path | None = None) -> Svg | None:
    """The map of plasticity and stability, a point a method; None where no method looked back."""
    tail = max(1, part.tasks // 10)
    found = [
        (
            place,
            course.title,
            Spread.of([Spread.of(s[-tail:]).mean for s in course.online]),
            Spread.of(course.kept),
        )
        for place, course in enumerate(part.courses.values())
        if course.kept
    ]
    if not found:
        return None
    learns, keeps = max(found, key=lambda f: f[2].mean), max(found, key=lambda f: f[3].mean)
    heading = (
        f"{part.label}: {learns[1]} learns best ({number(learns[2].mean, 2)}), {keeps[1]} keeps most "
        f"({number(keeps[3].mean, 2)})"
    )
    caption = (
        f"Right: learns new tasks (online {part.metric}, last {tail} task(s)). Up: keeps earlier tasks (their "
        f"{part.metric} after the last task; at most 20 of them, evenly spread). Bars: smallest to largest seed."
    )
    left_out = len(part.courses) - len(found)
    caption += f" {left_out} method(s) without a look back are left out." if left_out else ""
    with figure(height=max(4.6, 0.9 + 0.27 * len(found))) as (drawn, (ax,)):
        for place, title, x, y in found:
            cross(ax, (x.mean, x.lo, x.hi), (y.mean, y.lo, y.hi), place, title)
        ax.set_xlabel(f"plasticity: online {part.metric}, last tenth")
        ax.set_ylabel(f"stability: {part.metric} on earlier tasks")
        ax.margins(0.12)
        drawn.legend(loc="outside right upper", fontsize=9)
        name = f"{part.label}-map"
        save(drawn, folder, name)
        rows = tuple((title, str(x), str(y)) for _, title, x, y in found)
        return Svg(
            name, to_svg(drawn, name, heading), heading, caption, ("method", "plasticity", "stability"), rows
        )


def instruments(part: Comparison, folder: Path | None = None) -> Svg | None:
    """Fingerprints of the mechanisms over tasks, a panel each; None where nothing was measured."""
    shown = [n for n in INSTRUMENTS if any(n in c.instruments for c in part.courses.values())]
    if not shown:
        return None
    heading = f"{part.label}: fingerprints of the mechanisms over tasks"
    caption = "Measured at the end of some of the tasks; line: mean over seeds" + f"{_band(part)}."
    with figure(width=3.4 * len(shown), height=3.4, columns=len(shown)) as (drawn, axes):
        for ax, name in zip(axes, shown, strict=True):
            for place, course in enumerate(part.courses.values()):
                if name in course.instruments:
                    title = course.title if name == shown[0] else ""  # one entry a method in the legend
                    _line(ax, *course.instruments[name], title, place, part.bands)
            ax.set_title(INSTRUMENTS[name])
            ax.set_xlabel("task")
        drawn.legend(loc="outside right upper", handlelength=2.6, fontsize=9)
        name = f"{part.label}-instruments"
        save(drawn, folder, name)
        rows = tuple(
            (course.title, INSTRUMENTS[n], number(Spread.of([s[0] for s in course.instruments[n][1]]).mean),
             number(Spread.of([s[-1] for s in course.instruments[n][1]]).mean))
            for course in part.courses.values() for n in shown if n in course.instruments
        )  # fmt: skip
        columns = ("method", "instrument", "first look", "last look")
        return Svg(name, to_svg(drawn, name, heading), heading, caption, columns, rows)


def _line(
    ax: Axes, x: Sequence[int], seeds: Sequence[Sequence[float]], title: str, place: int, band: bool
) -> None:
    spreads = [Spread.of(values) for values in zip(*seeds, strict=False)]
    style = turn(place)
    along = list(x)[: len(spreads)]
    ax.plot(along, [s.mean for s in spreads], label=title or None, **style)
    if not band:
        return
    lo, hi = [s.lo for s in spreads], [s.hi for s in spreads]
    ax.fill_between(along, lo, hi, color=style["color"], alpha=0.12, linewidth=0)


def _band(part: Comparison) -> str:
    return "; band: smallest to largest seed" if part.bands else ""


def _running(values: Sequence[float], width: int) -> list[float]:
    return [Spread.of(values[max(0, i + 1 - width) : i + 1]).mean for i in range(len(values))]


def _cells(rows: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row) for row in rows)


def latex(page: ComparisonPage) -> str:
    """The tables as LaTeX (booktabs), one after the other."""
    lines: list[str] = []
    for part in page.protocols:
        lines += [f"% {part.label}", r"\begin{tabular}{l" + "r" * (len(part.columns) - 1) + "}", r"\toprule"]
        lines += [" & ".join(map(_escape, part.columns)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_escape, row)) + r" \\" for row in part.rows]
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Text for LaTeX.

    >>> _escape("l2_init & 5 %")
    'l2\\\\_init \\\\& 5 \\\\%'
    """
    for sign in "&%$#_{}":
        text = text.replace(sign, "\\" + sign)
    return text.replace("–", "--").replace("→", r"$\to$")
