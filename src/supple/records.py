"""One row of measurement, and the table that holds rows: the form in which every result travels."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supple.errors import need

MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Record:
    """One measured value.

    ``layer`` is a qualified module name or ``"*"`` for the pooled value; ``part`` names a packed block,
    a group or a head, empty otherwise; ``variant`` states the form (tau, kind, delta, centred, …);
    ``lo`` and ``hi`` bound an interval; ``error`` is the stated relative error of an estimator;
    ``status`` is ``"measured"`` or a `supple.status.Status` value, and then ``note`` has the reason;
    ``array`` names a tensor kept beside the records (spectra, unit scores).

    >>> Record("sigma_ratio", 0.25, layer="fc1").value
    0.25
    """

    instrument: str
    value: float
    layer: str = "*"
    part: str = ""
    variant: str = ""
    run: str = ""
    step: int = -1
    task: str = ""
    lo: float = math.nan
    hi: float = math.nan
    error: float = math.nan
    samples: int = 0
    status: str = MEASURED
    note: str = ""
    array: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, NaN as ``None`` (JSON has no NaN)."""
        row = dataclasses.asdict(self)
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                row[key] = None if math.isnan(value) else repr(value)
        return row

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Record:
        """Inverse of `to_dict`; an unknown key is an error that names it."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = set(row) - set(known)
        if unknown:
            raise ValueError(f"unknown record field(s): {sorted(unknown)}")
        values = dict(row)
        for key in ("value", "lo", "hi", "error"):
            if key in values:
                values[key] = math.nan if values[key] is None else float(values[key])
        return cls(**values)


class Records:
    """A table of `Record` rows with selection by field.

    >>> table = Records([Record("loss", 1.0, step=0), Record("loss", 0.5, step=1)])
    >>> table.select(instrument="loss", step=1).values()
    [0.5]
    """

    def __init__(self, rows: Iterable[Record] = ()) -> None:
        self.rows: list[Record] = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Record:
        return self.rows[index]

    def __repr__(self) -> str:
        names = sorted({r.instrument for r in self.rows})
        return f"Records({len(self.rows)} rows; instruments: {', '.join(names) or 'none'})"

    def append(self, row: Record) -> None:
        self.rows.append(row)

    def extend(self, rows: Iterable[Record]) -> None:
        self.rows.extend(rows)

    def select(self, **fields: object) -> Records:
        """Rows whose fields equal the given values."""
        return Records(r for r in self.rows if all(getattr(r, k) == v for k, v in fields.items()))

    def values(self) -> list[float]:
        return [r.value for r in self.rows]

    def last(self, **fields: object) -> Record | None:
        """The latest row that matches, or None."""
        for row in reversed(self.rows):
            if all(getattr(row, k) == v for k, v in fields.items()):
                return row
        return None

    def to_dicts(self) -> list[dict[str, Any]]:
        return [r.to_dict() for r in self.rows]

    def to_parquet(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
        """The rows as a Parquet table (extra ``bench``), a column for each field, NaN kept; put in place at once.

        Args:
            metadata: text by key, kept in the file's schema.

        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        pa, pq = need("pyarrow", "bench"), need("pyarrow.parquet", "bench")
        kinds = {"str": pa.string(), "float": pa.float64(), "int": pa.int64()}
        fields = dataclasses.fields(Record)
        columns = [pa.array([getattr(r, f.name) for r in self.rows], kinds[str(f.type)]) for f in fields]
        table = pa.table(columns, names=[f.name for f in fields]).replace_schema_metadata(
            dict(metadata or {})
        )
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        pq.write_table(table, temporary)
        os.replace(temporary, target)
        return target
