"""The page of a scan: findings, each matrix over the rounds, the tables, and what was left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from supple.report.page import finding_rows, write
from supple.report.style import MARKERS, Svg, figure, look, number, to_svg
from supple.status import Status

if TYPE_CHECKING:
    from supple.records import Records
    from supple.scan import ScanReport, Trend

#: matrices in one picture; the others are in the table
MOST_ROWS = 60
MOST_LINES = 6
#: instrument, variant, what the picture calls it
DRAWN = (
    ("effective_rank", "relative", "effective rank / short side"),
    ("sigma_ratio", "", "σ₁ / Σσ"),
    ("sigma_max", "", "σ₁"),
)
TABLE = (
    ("σ₁/Σσ", "sigma_ratio", ""), ("σ₁", "sigma_max", ""), ("effective rank", "effective_rank", ""),
    ("/ short side", "effective_rank", "relative"), ("stable rank", "stable_rank", ""),
    ("srank", "srank", "delta=0.01"), ("norm", "weight_norm", ""),
)  # fmt: skip
Key = tuple[str, str]


def write_scan(report: ScanReport, path: str | Path) -> Path:
    """The report as one HTML file, complete in itself."""
    drawings = [changes(report), *over_rounds(report)] if len(report.runs) > 1 else [levels(report)]
    present = [f.mechanism.replace("_", " ") for f in report.present]
    title = f"Scan: {', '.join(present)}" if present else "Scan of weights on disk"
    return write(
        path,
        "scan.html",
        title=title,
        report=report,
        findings=finding_rows(report.findings),
        figures=[d for d in drawings if d is not None],
        columns=("matrix", *(t for t, _, _ in TABLE), "note"),
        rounds=[(run, _table(report.records, run)) for run in reversed(report.runs)],
        expected=[
            (e.name, e.instrument.replace("_", " "), number(e.value), number(e.expected), number(e.ratio, 2),
             f"{e.std:.3g}")
            for e in report.expected
        ],
    )  # fmt: skip


def changes(report: ScanReport) -> Svg | None:
    """Matrix by round: the effective rank against that of the first round, as colour and in the numbers."""
    found = [t for t in report.trends if t.instrument == "effective_rank" and t.values[0]]
    if not found:
        return None
    found.sort(key=lambda t: -abs(t.change))
    shown = found[:MOST_ROWS]
    grid = [[v / t.values[0] - 1 for v in t.values] for t in shown]
    widest = max(0.01, max(abs(v) for row in grid for v in row))
    flagged = sum(t.status is Status.PRESENT for t in found)
    heading = f"Effective rank against the first round: steady loss in {flagged} of {len(found)} matrices"
    caption = "Rows: matrices, the largest change on top; columns: rounds. A flagged matrix is marked with ●."
    if len(found) > len(shown):
        caption += f" The {len(found) - len(shown)} matrices that change least are left out of the picture."
    with figure(height=1.4 + 0.2 * len(shown)) as (drawn, (ax,)):
        ax.grid(False)
        drawn_grid = ax.pcolormesh(grid, cmap="PuOr", vmin=-widest, vmax=widest, edgecolors="face")
        ax.invert_yaxis()
        ax.set_xticks(
            [i + 0.5 for i in range(len(report.runs))], [_brief(r) for r in report.runs], rotation=30
        )
        ax.set_yticks([i + 0.5 for i in range(len(shown))], [_marked(t) for t in shown], fontsize=8)
        drawn.colorbar(drawn_grid, ax=ax, label="change", format=lambda v, _: f"{v:+.0%}")
        rows = tuple(
            (t.name, *(number(v) for v in t.values), f"{t.change:+.1%}", f"{t.p:.2g}") for t in found
        )
        columns = ("matrix", *report.runs, "change", "p, corrected")
        return Svg("changes", to_svg(drawn, "changes", heading), heading, caption, columns, rows)


def over_rounds(report: ScanReport) -> list[Svg]:
    """One picture a quantity: its course over the rounds in the matrices that change most in it."""
    drawings = []
    for name, variant, words in DRAWN:
        courses = _courses(report.records, report.runs, name, variant)
        if not courses:
            continue
        order = sorted(courses, key=lambda k: -_moved(courses[k]))[:MOST_LINES]
        heading = f"{words} over the rounds"
        caption = (
            f"The {len(order)} of {len(courses)} matrices that change most, relative to their first round."
        )
        with figure(height=4.0) as (drawn, (ax,)):
            for place, key in enumerate(order):
                mark = MARKERS[place % len(MARKERS)]
                ax.plot(
                    range(len(report.runs)),
                    courses[key],
                    label=_short(_name(key)),
                    marker=mark,
                    **look(place),
                )
            ax.set_xticks(range(len(report.runs)), [_brief(r) for r in report.runs], rotation=30)
            ax.set_ylabel(words)
            drawn.legend(loc="outside right upper", handlelength=2.6, fontsize=9)
            rows = tuple((_name(k), *(number(v) for v in values)) for k, values in courses.items())
            markup = to_svg(drawn, name.replace("_", "-"), heading)
            drawings.append(Svg(name, markup, heading, caption, ("matrix", *report.runs), rows))
    return drawings


def levels(report: ScanReport) -> Svg | None:
    """A single checkpoint: the effective rank of each matrix as a share of its short side."""
    courses = _courses(report.records, report.runs, "effective_rank", "relative")
    if not courses:
        return None
    order = sorted(courses, key=lambda k: courses[k][0])[:MOST_ROWS]
    heading = "Effective rank of each matrix, as a share of its short side"
    caption = f"The {len(order)} lowest of {len(courses)} matrices. A single checkpoint shows no trend."
    with figure(height=1.2 + 0.2 * len(order)) as (drawn, (ax,)):
        places = range(len(order))
        ax.plot([courses[k][0] for k in order], places, color=look(0)["color"], linestyle="none", marker="o")
        ax.set_yticks(range(len(order)), [_short(_name(k)) for k in order], fontsize=8)
        ax.invert_yaxis()
        ax.set_xlim(0, 1)
        ax.set_xlabel("effective rank / short side")
        rows = tuple((_name(k), number(values[0])) for k, values in courses.items())
        return Svg("levels", to_svg(drawn, "levels", heading), heading, caption, ("matrix", "share"), rows)


def _courses(records: Records, runs: Sequence[str], name: str, variant: str) -> dict[Key, list[float]]:
    """Matrix -> its value in each round, of the matrices that were measured in all of them."""
    found: dict[Key, dict[str, float]] = {}
    for r in records.select(instrument=name, variant=variant, status="measured"):
        found.setdefault((r.layer, r.part), {})[r.run] = r.value
    return {k: [by[run] for run in runs] for k, by in found.items() if len(by) == len(runs)}


def _table(records: Records, run: str) -> list[tuple[str, ...]]:
    values: dict[Key, dict[Key, float]] = {}
    notes: dict[Key, str] = {}
    for r in records.select(run=run):
        values.setdefault((r.layer, r.part), {})[r.instrument, r.variant] = r.value
        if r.status != Status.NOT_MEASURED.value:
            notes[r.layer, r.part] = r.note
    return [
        (_name(key), *(number(row.get((i, v), math.nan)) for _, i, v in TABLE), notes.get(key, ""))
        for key, row in values.items()
    ]


def _moved(values: Sequence[float]) -> float:
    return abs(values[-1] - values[0]) / abs(values[0]) if values[0] else 0.0


def _name(key: Key) -> str:
    layer, part = key
    return f"{layer} [{part}]" if part else layer


def _marked(trend: Trend) -> str:
    return ("● " if trend.status is Status.PRESENT else "") + _short(trend.name)


def _short(name: str, width: int = 44) -> str:
    """Long names keep their end, which tells matrices apart."""
    return name if len(name) <= width else "…" + name[1 - width :]


def _brief(run: str) -> str:
    return _short(run.removesuffix(".safetensors"), 18)
