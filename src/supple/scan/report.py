"""The answer of a scan: rows, trends, findings, what was left out and why; as text in 80 columns or JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supple.diagnose.types import Finding, plain
from supple.records import Records
from supple.scan.expected import Expectation
from supple.scan.matrices import Skipped
from supple.scan.trend import Trend
from supple.status import Status

#: column title, instrument, variant
COLUMNS = (
    ("σ1/Σσ", "sigma_ratio", ""), ("σ1", "sigma_max", ""), ("erank", "effective_rank", ""),
    ("/full", "effective_rank", "relative"), ("stable", "stable_rank", ""), ("srank", "srank", "delta=0.01"),
)  # fmt: skip
#: quantity compared with its expectation at initialisation -> column title
RATIOS = {"sigma_max": "σ1", "nuclear_norm": "Σσ", "effective_rank": "erank"}
NAME_WIDTH = 30
SHOWN_TRENDS = 10


@dataclass(frozen=True)
class Failure:
    """A checkpoint that was not read, and the one message about it."""

    path: str
    message: str


@dataclass(frozen=True)
class ScanReport:
    """What the weights on disk say. ``runs`` are the labels of the checkpoints that were read, in order."""

    runs: tuple[str, ...]
    records: Records
    trends: tuple[Trend, ...]
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    failures: tuple[Failure, ...]
    expected: tuple[Expectation, ...] = ()
    not_expected: str = ""  #: why the first round has no expected spectrum at initialisation
    not_compared: tuple[Skipped, ...] = ()  #: matrices that not every round has

    @property
    def present(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.status is Status.PRESENT)

    def to_dict(self) -> dict[str, Any]:
        """Plain types throughout (NaN as null)."""
        return {
            "checkpoints": list(self.runs),
            "records": [plain(r) for r in self.records.to_dicts()],
            "trends": [plain(dataclasses.asdict(t)) for t in self.trends],
            "findings": [f.to_dict() for f in self.findings],
            "skipped": [dataclasses.asdict(s) for s in self.skipped],
            "failures": [dataclasses.asdict(f) for f in self.failures],
            "expected_at_initialisation": [plain(dataclasses.asdict(e)) for e in self.expected],
            "no_expected_spectrum": self.not_expected,
            "not_compared": [dataclasses.asdict(s) for s in self.not_compared],
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON text, written to ``path`` when one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_parquet(self, path: str | Path) -> Path:
        """The records as a Parquet table (extra ``bench``), one row each; all else as JSON in its metadata."""
        rest = {k: v for k, v in self.to_dict().items() if k != "records"}
        return self.records.to_parquet(path, {"supple.scan": json.dumps(rest, allow_nan=False)})

    def to_html(self, path: str | Path) -> Path:
        """One offline page: findings, plots by matrix and round, tables, what was left out."""
        from supple.report.scan import write_scan

        return write_scan(self, path)

    def __str__(self) -> str:
        lines: list[str] = []
        if self.runs:
            lines += self._table(self.runs[-1])
        if self.trends:
            lines += [
                "",
                f"Over {len(self.runs)} rounds ({self.runs[0]} to {self.runs[-1]})",
                *self._trends(),
            ]
        if self.runs:
            lines += ["", *self._expected(), ""]
        for finding in self.findings if self.runs else ():
            name = finding.mechanism.replace("_", " ")
            word = finding.status.replace("_", " ")
            lines += [
                f"{name}: {word.upper() if finding.status is Status.PRESENT else word}. {finding.reason}"
            ]
            if finding.advice:
                lines += [f"  {finding.advice}"]
        lines += self._left_out()
        return "\n".join(lines)

    def _table(self, run: str) -> list[str]:
        head = f"{run}"
        lines = [head, f"{'matrix':<{NAME_WIDTH}}" + "".join(f"{title:>8}" for title, _, _ in COLUMNS)]
        rows: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
        notes: dict[tuple[str, str], str] = {}
        errors: dict[tuple[str, str], list[float]] = {}
        for r in self.records.select(run=run):
            rows.setdefault((r.layer, r.part), {})[r.instrument, r.variant] = r.value
            if r.status != Status.NOT_MEASURED.value:
                notes[r.layer, r.part] = r.note
            errors.setdefault((r.layer, r.part), []).append(r.error)
        for (layer, part), values in rows.items():
            name = f"{layer} [{part}]" if part else layer
            cells = (values.get((i, v), math.nan) for _, i, v in COLUMNS)
            lines.append(f"{_short(name):<{NAME_WIDTH}}" + "".join(f"{_cell(c):>8}" for c in cells))
            worst = max((e for e in errors[layer, part] if not math.isnan(e)), default=math.nan)
            if not math.isnan(worst):
                lines.append(f"    estimated, to {worst:.2%} by its own statement")
            if notes[layer, part]:
                lines.append(f"    {notes[layer, part]}")
        return lines

    def _trends(self) -> list[str]:
        lines = [f"{'matrix':<{NAME_WIDTH}}{'quantity':<16}{'first':>8}{'last':>8}{'change':>8}{'p':>8}"]
        for t in self.trends[:SHOWN_TRENDS]:
            lines.append(
                f"{_short(t.name):<{NAME_WIDTH}}{t.instrument:<16}{_cell(t.values[0]):>8}"
                f"{_cell(t.values[-1]):>8}{t.change:>+8.1%}{t.p:>8.2g}"
            )
        more = len(self.trends) - SHOWN_TRENDS
        return lines + ([f"  and {more} more (--json has all)"] if more > 0 else [])

    def _expected(self) -> list[str]:
        """The first round beside a start of the same shapes; or that its start is not known."""
        if not self.expected:
            why = self.not_expected or "none of its matrices was measured"
            return [f"{self.runs[0]} is not set against an expected spectrum at initialisation:", f"  {why}"]
        rows = against_start(self.expected)
        lines = [f"{self.runs[0]} against its expected spectrum at initialisation (1 = as expected)"]
        lines += [f"{'matrix':<{NAME_WIDTH}}{'std':>8}" + "".join(f"{title:>8}" for title in RATIOS.values())]
        for name, (std, ratios) in list(rows.items())[:SHOWN_TRENDS]:
            cells = (ratios.get(i, math.nan) for i in RATIOS)
            lines.append(
                f"{_short(name):<{NAME_WIDTH}}{_cell(std):>8}" + "".join(f"{_cell(c):>8}" for c in cells)
            )
        more = len(rows) - SHOWN_TRENDS
        return lines + ([f"  and {more} nearer to it (--json has all)"] if more > 0 else [])

    def _left_out(self) -> list[str]:
        lines = []
        for title, left, what in (
            ("not measured", self.skipped, "tensors"),
            ("not compared over the rounds", self.not_compared, "matrices"),
        ):
            if left:
                lines.append(f"{title}: {len(left)} {what}")
                lines += [f"  {_short(s.layer)}: {s.reason}" for s in left[:5]]
            if len(left) > 5:
                lines.append(f"  and {len(left) - 5} more (--json has all)")
        lines += [f"NOT READ: {f.message}" for f in self.failures]
        return lines


def against_start(expected: Sequence[Expectation]) -> dict[str, tuple[float, dict[str, float]]]:
    """Matrix -> (std at the start, instrument -> value over expected), the effective rank farthest off first."""
    rows: dict[str, tuple[float, dict[str, float]]] = {}
    for e in expected:
        rows.setdefault(e.name, (e.std, {}))[1][e.instrument] = e.ratio
    return dict(sorted(rows.items(), key=lambda r: -abs(r[1][1].get("effective_rank", 1.0) - 1)))


def _short(name: str) -> str:
    """Long names keep their end, which tells matrices apart."""
    return name if len(name) < NAME_WIDTH else "…" + name[-(NAME_WIDTH - 2) :]


def _cell(value: float) -> str:
    """Three significant digits, or a dash.

    >>> _cell(0.0123456), _cell(51.234), _cell(float("nan"))
    ('0.0123', '51.2', '-')
    """
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
