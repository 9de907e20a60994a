"""From finished runs to what the page of a comparison draws: courses over tasks, instruments, the table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from supple.bench import methods
from supple.bench.aggregate import THRESHOLDS, Overall, overall
from supple.bench.kept import stability
from supple.bench.rows import curve, metric_of
from supple.bench.statistics import Estimate
from supple.bench.summary import Row, Summary, collect, stored_runs
from supple.records import MEASURED, Records
from supple.report.comparison import INSTRUMENTS, Comparison, ComparisonPage, Course
from supple.report.overall import OverallPart, Profile
from supple.store import StoredRun

COLUMNS = (
    "method",
    "seeds",
    "first tasks",
    "last tenth",
    "area",
    "below own peak",
    "minus fresh",
    "lost from task",
    "earlier tasks",
    "forgetting",
)

OVERALL = ("method", "seeds × protocols", "interquartile mean, fresh = 1", "P(beats plain)")


def comparison_page(root: str | Path, command: str = "") -> ComparisonPage:
    """Everything below a folder, a part for each protocol."""
    summary = collect(root)
    runs, _ = stored_runs(root)
    labels = dict.fromkeys(row.protocol for row in summary.rows)
    parts: list[Comparison | OverallPart] = [_part(label, summary, runs) for label in labels]
    together = overall(runs)
    if together is not None:
        parts.append(overall_part(together))
    return ComparisonPage(parts, summary.left_out, command)


def overall_part(found: Overall) -> OverallPart:
    """All protocols on the scale of the fresh reference, as the page and its figure show them."""
    rows, profiles = [], []
    for method, scores in found.scores.items():
        better, shares = found.better(method), found.profile(method)
        cells = [_interval(found.middle(method)), "–" if better is None else _interval(better, ".2f")]
        rows.append([_title(method), f"{len(scores)} × {len(found.protocols)}", *cells])
        profiles.append(
            Profile(_title(method), *([getattr(e, n) for e in shares] for n in ("value", "lo", "hi")))
        )
    note = (
        f"Score of a run: its last tenth over that of the fresh reference, in {', '.join(found.protocols)}. Intervals "
        "resample seeds within each protocol (95 %)."
    )
    missing = "; ".join(f"{name}: {why}" for name, why in found.left_out.items())
    note += f" Left out: {missing}." if missing else ""
    return OverallPart("All protocols", note, THRESHOLDS, profiles, OVERALL, rows)


def _part(
    label: str, summary: Summary, runs: Mapping[tuple[str, str], Mapping[int, StoredRun]]
) -> Comparison:
    rows = sorted((r for r in summary.rows if r.protocol == label), key=lambda r: -r.last.value)
    found = {r.method: [runs[label, r.method][s] for s in r.seeds] for r in rows}
    courses = {
        m: Course(
            _title(m), [curve(run.records, "online") for run in group], _instruments(group), _kept(group)
        )
        for m, group in found.items()
    }
    metric = metric_of(next(iter(found.values()))[0].records)
    return Comparison(label, metric, courses, COLUMNS, [_cells(r) for r in rows])


def _kept(group: Sequence[StoredRun]) -> list[float]:
    """What each run keeps of earlier tasks; nothing where one of them did not look back."""
    found = [stability(run.records) for run in group]
    return [] if any(map(math.isnan, found)) else found


def _title(method: str) -> str:
    known = methods.METHODS.get(method)
    return method if known is None else known.title


def _cells(row: Row) -> list[str]:
    fresh = "–" if row.against_fresh is None else _interval(row.against_fresh.difference, "+.3f")
    values = [_interval(e) for e in (row.first, row.last, row.area, row.from_peak)]
    back = ["–" if e is None else _interval(e) for e in (row.kept, row.forgetting)]
    seeds = f"{len(row.seeds)}{f', {row.diverged} diverged' * bool(row.diverged)}"
    return [_title(row.method), seeds, *values, fresh, row.lost_from, *back]


def _interval(e: Estimate, form: str = ".3f") -> str:
    return format(e.value, form) + ("" if e.samples < 2 else f" [{e.lo:{form}}, {e.hi:{form}}]")


def _instruments(group: list[StoredRun]) -> dict[str, tuple[list[int], list[list[float]]]]:
    """What was measured in every run of a method, at the tasks that all have."""
    by_run = [_looks(run.records) for run in group]
    out: dict[str, tuple[list[int], list[list[float]]]] = {}
    for name in INSTRUMENTS:
        if not all(name in found for found in by_run):
            continue
        tasks = sorted(set.intersection(*(set(found[name]) for found in by_run)))
        if tasks:
            out[name] = ([t + 1 for t in tasks], [[found[name][t] for t in tasks] for found in by_run])
    return out


def _looks(records: Records) -> dict[str, dict[int, float]]:
    """Instrument -> task -> value of the whole network."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for r in records:
        if r.layer == "*" and not r.part and r.status == MEASURED:
            name = f"{r.instrument} ({r.variant})" if r.variant else r.instrument
            found[name][int(r.task.rpartition("-")[2])] = r.value
    return found
