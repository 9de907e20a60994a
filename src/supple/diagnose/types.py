"""What a diagnosis is made of: evidence, findings, sources, a prescription, the report that joins them.

Everything is frozen, typed, and turns into plain types and back: `to_dict` / `from_dict`. NaN travels as
null and an infinity as a string, since JSON has neither.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from supple.errors import InputError
from supple.records import Record, Records
from supple.status import Mechanism, Status
from supple.topology.graph import Coverage, LayerCoverage, Topology

REPORT_VERSION = 1


def plain(value: Any) -> Any:
    """Plain types for JSON: NaN to None, infinities to strings, enums to strings, tensors to lists.

    >>> plain({"a": float("nan"), "b": (1, float("inf"))})
    {'a': None, 'b': [1, 'inf']}
    """
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else repr(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return repr(value)


def number(value: Any) -> float:
    """Inverse of `plain` for one number: None to NaN, ``"inf"`` to infinity."""
    return math.nan if value is None else float(value)


def known_keys(cls: type[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as keyword arguments of ``cls``; an unknown key is an error that names it."""
    unknown = set(row) - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise InputError(f"unknown {cls.__name__} field(s)", found=sorted(unknown))
    return dict(row)


@dataclass(frozen=True)
class Evidence:
    """One measured value a verdict rests on.

    ``lo``..``hi`` is the interval of ``value`` (95 % unless the note says otherwise), ``reference`` the
    same quantity on the healthy twin (mean over twins), ``threshold`` the value that separates, ``samples``
    the number of probe samples (or of paired comparisons), ``layer`` a qualified name or ``"*"``.
    ``decides`` is False for what is shown beside the verdict without carrying it.
    """

    name: str
    value: float
    lo: float = math.nan
    hi: float = math.nan
    reference: float = math.nan
    threshold: float = math.nan
    samples: int = 0
    note: str = ""
    layer: str = "*"
    decides: bool = True

    def to_dict(self) -> dict[str, Any]:
        return plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Evidence:
        values = known_keys(cls, row)
        for key in ("value", "lo", "hi", "reference", "threshold"):
            if key in values:
                values[key] = number(values[key])
        return cls(**values)


@dataclass(frozen=True)
class Finding:
    """A mechanism, how sure, how bad, where, on what evidence, and what follows.

    ``severity`` runs from 0 (as the twin) to 1 (nothing left) and is None where it was not measured;
    ``reason`` says why the status is what it is. ``probability`` that the mechanism costs learning here: from
    networks of the lab with this status and severity (`supple.diagnose.fitted`); None where there are none.

    >>> Finding(Mechanism.DEAD_UNITS, Status.NOT_MEASURED, reason="no reference").status
    <Status.NOT_MEASURED: 'not_measured'>
    """

    mechanism: Mechanism
    status: Status
    severity: float | None = None
    layers: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    advice: str = ""
    reason: str = ""
    probability: float | None = None

    def to_dict(self) -> dict[str, Any]:
        row = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "evidence"}
        return {**plain(row), "evidence": [e.to_dict() for e in self.evidence]}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Finding:
        values = known_keys(cls, row)
        values["mechanism"] = Mechanism(values["mechanism"])
        values["status"] = Status(values["status"])
        values["layers"] = tuple(values.get("layers", ()))
        values["evidence"] = tuple(Evidence.from_dict(e) for e in values.get("evidence", ()))
        return cls(**values)


@dataclass(frozen=True)
class Source:
    """Why a mechanism arose, as far as it can be told: the second step of the protocol.

    ``kind``: "activation" | "bypass" | "initialisation" | "drift" | "batch size" | "task switch" |
    "learning rate". ``certain`` is False for what a single checkpoint suggests but cannot prove.
    """

    mechanism: Mechanism
    kind: str
    text: str
    layers: tuple[str, ...] = ()
    certain: bool = True

    def to_dict(self) -> dict[str, Any]:
        return plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Source:
        values = known_keys(cls, row)
        values["mechanism"] = Mechanism(values["mechanism"])
        values["layers"] = tuple(values.get("layers", ()))
        return cls(**values)


@dataclass(frozen=True)
class PrescriptionLine:
    """One thing to do: for which mechanism, with which settings, at what cost, on whose word.

    ``intervention`` is a name in the registry of `supple.interventions`, or a name in `supple.nn` where
    ``kind`` is "architectural". ``level``: 1 training trick, 2 spectral or frequency domain,
    3 architecture. ``kind``: "one-off" | "periodic" | "standing" | "architectural". ``evidence`` grades
    what supports the match, ``trigger`` says when the line applies, ``warning`` names the famous fix that
    does not fit.
    """

    mechanism: Mechanism | None
    intervention: str
    settings: dict[str, Any] = field(default_factory=dict)
    kind: str = "periodic"
    level: int = 1
    cost: str = "low"
    evidence: str = ""
    trigger: str = ""
    warning: str = ""
    text: str = ""
    layers: tuple[str, ...] = ()
    primary: bool = True

    def to_dict(self) -> dict[str, Any]:
        return plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> PrescriptionLine:
        values = known_keys(cls, row)
        if values["mechanism"] is not None:
            values["mechanism"] = Mechanism(values["mechanism"])
        values["layers"] = tuple(values.get("layers", ()))
        return cls(**values)


@dataclass(frozen=True)
class Prescription:
    """What to do, most fitting first; ``note`` says where the order comes from (the table, or a trial)."""

    lines: tuple[PrescriptionLine, ...] = ()
    note: str = ""

    @property
    def primary(self) -> tuple[PrescriptionLine, ...]:
        """The lines to follow first; the others are alternatives or apply under another trigger."""
        return tuple(line for line in self.lines if line.primary)

    def to_dict(self) -> dict[str, Any]:
        return {"lines": [line.to_dict() for line in self.lines], "note": self.note}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Prescription:
        values = known_keys(cls, row)
        return cls(
            tuple(PrescriptionLine.from_dict(x) for x in values.get("lines", ())), values.get("note", "")
        )


@dataclass(frozen=True)
class DiagnosisReport:
    """The answer of `supple.diagnose`: one finding per mechanism, coverage, sources, a prescription.

    ``records`` are the measurements behind it, ``arrays`` the spectra and unit scores they name, ``meta``
    what was compared with what (reference kind and strength, samples, seconds, versions).
    """

    findings: tuple[Finding, ...]
    coverage: Coverage
    prescription: Prescription = field(default_factory=Prescription)
    records: Records = field(default_factory=Records)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    # for a plan in the same process; not part of what is stored
    topology: Topology | None = field(default=None, repr=False, compare=False)
    inputs: Any = field(default=None, repr=False, compare=False)

    def finding(self, mechanism: str) -> Finding:
        """The finding about one mechanism; an unknown name lists the known ones."""
        for found in self.findings:
            if found.mechanism == mechanism:
                return found
        known = ", ".join(f.mechanism for f in self.findings) or "none"
        raise InputError(f"no finding about {mechanism!r}", do=f"choose one of {known}")

    @property
    def present(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.status is Status.PRESENT)

    def __str__(self) -> str:
        from supple.diagnose.text import render

        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain types throughout; `from_dict` is its inverse."""
        return {
            "version": REPORT_VERSION,
            "findings": [f.to_dict() for f in self.findings],
            "coverage": [dataclasses.asdict(c) for c in self.coverage.layers],
            "prescription": self.prescription.to_dict(),
            "sources": [s.to_dict() for s in self.sources],
            "records": [plain(r) for r in self.records.to_dicts()],
            "arrays": plain(self.arrays),
            "meta": plain(self.meta),
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> DiagnosisReport:
        """Inverse of `to_dict`; arrays come back as float64 tensors."""
        import torch

        if row.get("version") != REPORT_VERSION:
            raise InputError(
                f"this is not a diagnosis report of version {REPORT_VERSION}", found=row.get("version")
            )
        return cls(
            findings=tuple(Finding.from_dict(f) for f in row["findings"]),
            coverage=Coverage(tuple(LayerCoverage(**c) for c in row["coverage"])),
            prescription=Prescription.from_dict(row["prescription"]),
            records=Records(Record.from_dict(r) for r in row["records"]),
            arrays={k: torch.tensor(_numbers(v), dtype=torch.float64) for k, v in row["arrays"].items()},
            sources=tuple(Source.from_dict(s) for s in row["sources"]),
            meta=dict(row["meta"]),
        )

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON text, written to ``path`` when one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, path: str | Path) -> DiagnosisReport:
        """Read what `to_json` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def to_html(self, path: str | Path) -> Path:
        """One offline HTML file with the tables and figures of this report."""
        report = importlib.import_module("supple.report")  # drawn elsewhere: this room imports no figures
        return Path(report.write_diagnosis(self, path))


def _numbers(value: Any) -> Any:
    return [_numbers(v) for v in value] if isinstance(value, list) else number(value)
