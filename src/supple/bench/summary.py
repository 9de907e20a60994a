"""From run folders to a table: one row for each protocol and method, over seeds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from supple.bench import methods, statistics
from supple.bench.cohort.engine import COHORTS
from supple.bench.kept import forgotten, stability
from supple.bench.rows import curve, diverged, metric_of
from supple.bench.spec import different
from supple.bench.statistics import Estimate, Paired
from supple.errors import StoreError
from supple.store import StoredRun, load

REFERENCE = "fresh"
KEPT = ("kept", "forgetting")


@dataclass(frozen=True)
class Row:
    """One method on one protocol. ``against_fresh`` and ``onset`` pair seeds that both have.

    ``kept`` is the metric on earlier tasks after the last one, ``forgetting`` the area of forgetting; None where a run
    has no earlier task or did not look back on one.

    An upper end of ``onset`` that equals ``tasks`` says that the fall may never come. ``diverged``: runs with a loss
    that was not finite, whose answers count as wrong.
    """

    protocol: str
    method: str
    seeds: tuple[int, ...]
    first: Estimate
    last: Estimate
    end: Estimate
    area: Estimate
    from_peak: Estimate
    against_fresh: Paired | None
    onset: Estimate | None
    tasks: int
    kept: Estimate | None = None
    forgetting: Estimate | None = None
    diverged: int = 0

    @property
    def lost_from(self) -> str:
        """The onset in words, with its interval: "never" where it does not come, "–" where there is no reference."""
        e = self.onset
        if self.against_fresh is None:
            return "–"
        if e is None:
            return "never"
        if e.samples < 2:
            return f"{e.value:.0f}"
        return f"{e.value:.0f} [{e.lo:.0f}, {'never' if e.hi >= self.tasks else format(e.hi, '.0f')}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain types, three numbers for each estimate."""
        row: dict[str, Any] = {"protocol": self.protocol, "method": self.method, "seeds": list(self.seeds)}
        row["diverged"] = self.diverged
        for name in ("first", "last", "end", "area", "from_peak"):
            row[name] = _numbers(getattr(self, name))
        for name in KEPT:
            row[name] = None if getattr(self, name) is None else _numbers(getattr(self, name))
        if self.against_fresh is not None:
            row["against_fresh"] = {
                **_numbers(self.against_fresh.difference),
                "p": self.against_fresh.p_value,
                "pairs": self.against_fresh.difference.samples,
            }
            row["onset"] = None if self.onset is None else _numbers(self.onset)
        return row


def _numbers(e: Estimate) -> dict[str, float | None]:
    lo, hi = (None, None) if e.samples < 2 else (e.lo, e.hi)
    return {"value": e.value, "lo": lo, "hi": hi}


def _or_none(e: Estimate | None) -> dict[str, float | None]:
    return {"value": None, "lo": None, "hi": None} if e is None else _numbers(e)


@dataclass(frozen=True)
class Summary:
    """Rows, and the folders that were left out, each with the reason."""

    rows: list[Row]
    left_out: dict[str, str] = field(default_factory=dict)

    def row(self, method: str, protocol: str | None = None) -> Row:
        """The row of one method."""
        for row in self.rows:
            if row.method == method and protocol in (None, row.protocol):
                return row
        raise KeyError(method)

    def to_dicts(self) -> list[dict[str, Any]]:
        return [r.to_dict() for r in self.rows]

    def to_csv(self) -> str:
        """One line a row; intervals as separate columns."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = ("first", "last", "end", "area", "from_peak")
        writer.writerow(
            [
                "protocol",
                "method",
                "seeds",
                *(f"{n}{s}" for n in names for s in ("", "_lo", "_hi")),
                *(f"minus_fresh{s}" for s in ("", "_lo", "_hi")),
                "onset",
                "onset_lo",
                "onset_hi",
                *(f"{n}{s}" for n in KEPT for s in ("", "_lo", "_hi")),
                "diverged",
            ]
        )
        for row in self.rows:
            cells = [x for n in names for x in _numbers(getattr(row, n)).values()]
            fresh = _or_none(None if row.against_fresh is None else row.against_fresh.difference).values()
            never = row.against_fresh is not None and row.onset is None
            when = ["never" * never, "", ""] if row.onset is None else _numbers(row.onset).values()
            back = [x for n in KEPT for x in _or_none(getattr(row, n)).values()]
            about = [row.protocol, row.method, len(row.seeds)]
            writer.writerow([*about, *cells, *fresh, *when, *back, row.diverged])
        return out.getvalue()

    def __str__(self) -> str:
        lines = []
        for protocol in dict.fromkeys(r.protocol for r in self.rows):
            rows = sorted((r for r in self.rows if r.protocol == protocol), key=lambda r: -r.last.value)
            wide = max(18, *(len(r.method) for r in rows))
            lines += [
                protocol,
                f"{'method':<{wide}}{'n':>3}{'first':>7}{'last tenth':>21}{'minus fresh':>23}{'onset':>8}",
            ]
            digits = _digits(rows)
            for r in rows:
                fresh = (
                    "" if r.against_fresh is None else _short(r.against_fresh.difference, digits, sign=True)
                )
                first = f"{r.first.value:.{digits}f}"
                lines.append(
                    f"{r.method:<{wide}}{len(r.seeds):>3}{first:>7}{_short(r.last, digits):>21}{fresh:>23}"
                    f"{'' if r.against_fresh is None else r.lost_from.partition(' ')[0]:>8}".rstrip()
                )
            lines += [f"onset of {r.method}: task {r.lost_from}" for r in rows if r.onset]
        if any(r.onset for r in self.rows):
            lines += [
                "onset: the first task, counted from 0, from which a method stays below the",
                "fresh network by 0.05 (of returns: by a tenth of its level), with the 95 %",
                "bootstrap interval over seeds",
            ]
        lines += [
            f"diverged: {r.method} on {r.protocol}: loss not finite in {r.diverged} of {len(r.seeds)} run(s)"
            for r in self.rows
            if r.diverged
        ]
        lines += [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


def _digits(rows: list[Row]) -> int:
    """Decimals of a table: three of an accuracy, none of returns in hundreds."""
    top = max(abs(v) for r in rows for v in (r.first.value, r.last.value))
    return 3 if top < 10 else 1 if top < 100 else 0


def _short(e: Estimate, digits: int, sign: bool = False) -> str:
    form = f"{'+' * sign}.{digits}f"
    return format(e.value, form) + ("" if e.samples < 2 else f" [{e.lo:{form}},{e.hi:{form}}]")


def collect(root: str | Path) -> Summary:
    """Summarise all runs under ``root``. Unfinished and damaged runs are left out and named.

    Raises:
        StoreError: nothing there.
    """
    runs, left_out = stored_runs(root)
    order = list(methods.METHODS)
    keys = sorted(runs, key=lambda k: (k[0], order.index(k[1]) if k[1] in order else len(order)))
    return Summary([_row(key, runs[key], runs.get((key[0], REFERENCE), {})) for key in keys], left_out)


def stored_runs(root: str | Path) -> tuple[dict[tuple[str, str], dict[int, StoredRun]], dict[str, str]]:
    """(protocol, method) -> seed -> finished run below ``root``, and what was left out with the reason.

    The folder of a run has ``manifest.json``; where it lies below ``root`` does not matter.

    Raises:
        StoreError: nothing there; runs of one protocol with different settings, or one run twice.
    """
    runs: dict[tuple[str, str], dict[int, StoredRun]] = {}
    left_out: dict[str, str] = {}
    settings: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for manifest in sorted(Path(root).rglob("manifest.json")):
        name = str(manifest.parent.relative_to(root))
        if manifest.parent.parent.name == COHORTS:  # where a cohort works; its runs have folders of their own
            continue
        try:
            stored = load(manifest.parent)
        except StoreError as error:
            left_out[name] = str(error)
            continue
        if not stored.done:
            left_out[name] = "not finished"
            continue
        about = stored.manifest["run"]
        label, method, seed = about["protocol"]["name"], about["method"], about["seed"]
        first = settings.setdefault(label, (name, about["protocol"]))
        if found := different(first[1], about["protocol"]):
            raise StoreError(
                f"runs of {label} with different settings cannot be compared",
                found=f"{found} ({first[0]} and {name})",
                where=str(root),
                do="report the folder of each by itself",
            )
        same = runs.setdefault((label, method), {})
        if seed in same:
            raise StoreError(f"{label}, {method}, seed {seed} is there twice", found=name, where=str(root),
                             do="report the folder of each by itself")  # fmt: skip
        same[seed] = stored
    if not runs and not left_out:
        raise StoreError("there are no runs here", where=str(root))
    return runs, left_out


def _row(key: tuple[str, str], runs: Mapping[int, StoredRun], fresh: Mapping[int, StoredRun]) -> Row:
    seeds = tuple(sorted(runs))
    online = [curve(runs[s].records, "online") for s in seeds]
    end = [curve(runs[s].records, "end") for s in seeds]
    pairs = [s for s in seeds if s in fresh]
    against = when = None
    if pairs and key[1] != REFERENCE:
        own = [statistics.final_tenth(curve(runs[s].records, "online")) for s in pairs]
        other = [statistics.final_tenth(curve(fresh[s].records, "online")) for s in pairs]
        against = statistics.paired(own, other)
        a, b = (np.array([curve(found[s].records, "online") for s in pairs]) for found in (runs, fresh))
        margin = 0.1 * abs(float(b.mean())) if metric_of(runs[pairs[0]].records) == "return" else 0.05
        when = statistics.onset(a, b, margin=margin)
    return Row(
        protocol=key[0],
        method=key[1],
        seeds=seeds,
        first=statistics.mean([statistics.final_tenth(c[::-1]) for c in online]),
        last=statistics.mean([statistics.final_tenth(c) for c in online]),
        end=statistics.mean([statistics.final_tenth(c) for c in end]),
        area=statistics.mean([statistics.area(c) for c in online]),
        from_peak=statistics.mean([statistics.loss_from_peak(c) for c in online]),
        against_fresh=against,
        onset=when,
        tasks=min(len(c) for c in online),
        kept=_if_known([stability(runs[s].records) for s in seeds]),
        forgetting=_if_known([forgotten(runs[s].records) for s in seeds]),
        diverged=sum(diverged(runs[s].records) for s in seeds),
    )


def _if_known(values: Sequence[float]) -> Estimate | None:
    """The mean over seeds where every seed has a value."""
    return None if any(map(math.isnan, values)) else statistics.mean(values)
