"""The answer of a scan: rows, trends, findings, what was left out and why; as text in 80 columns or JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supple.diagnose.types import Finding, plain
from supple.records import Records
from supple.scan.matrices import Skipped
from supple.scan.trend import Trend
from supple.status import Status

#: column title, instrument, variant
COLUMNS = (
    ("σ1/Σσ", "sigma_ratio", ""), ("σ1", "sigma_max", ""), ("erank", "effective_rank", ""),
    ("/full", "effective_rank", "relative"), ("stable", "stable_rank", ""), ("srank", "srank", "delta=0.01"),
)  # fmt: skip
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
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON text, written to ``path`` when one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

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
            lines += [""]
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

    def _left_out(self) -> list[str]:
        lines = []
        if self.skipped:
            lines.append(f"not measured: {len(self.skipped)} tensors")
            lines += [f"  {_short(s.layer)}: {s.reason}" for s in self.skipped[:5]]
            if len(self.skipped) > 5:
                lines.append(f"  and {len(self.skipped) - 5} more (--json has all)")
        lines += [f"NOT READ: {f.message}" for f in self.failures]
        return lines


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
