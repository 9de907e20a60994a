"""Rows in constant memory: a ring of recent ones, all of them on disk where there is a path, and sinks."""

from __future__ import annotations

import json
import os
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from supple.records import MEASURED, Record, Records


class Sink(Protocol):
    """Where measured values also go: a tracker, a console."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the values of one measurement, named ``instrument/layer/variant``."""


class Ledger:
    """Append rows, keep the last ``keep`` in memory, write every row as one JSON line.

    A disk that fails costs the rows on disk, never the training run: one warning, then memory alone.
    """

    def __init__(self, path: str | Path | None, keep: int, sinks: Sequence[Sink] = ()) -> None:
        self.path = None if path is None else Path(path)
        self.ring: deque[Record] = deque(maxlen=keep)
        self.sinks = tuple(sinks)
        self.written = 0  # bytes of the file that are ours
        self.lost = 0  # rows that left the ring and are nowhere else
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                self.written = file.tell()

    def add(self, rows: Iterable[Record], step: int) -> None:
        """Append the rows of one measurement."""
        rows = list(rows)
        if self.path is None:
            self.lost += max(0, len(self.ring) + len(rows) - (self.ring.maxlen or 0))
        else:
            self._write(rows)
        self.ring.extend(rows)
        if self.sinks:
            values = {_label(r): r.value for r in rows if r.status == MEASURED}
            for sink in self.sinks:
                sink.log(values, step)

    def all(self) -> Records:
        """Every row: from disk where there is a path, else those still in memory."""
        if self.path is None or not self.path.exists():
            return Records(self.ring)
        with self.path.open(encoding="utf-8") as file:
            return Records(Record.from_dict(json.loads(line)) for line in file)

    def truncate(self, written: int) -> None:
        """Cut the file back to a length it had at a checkpoint; rows after it will be made again."""
        if self.path is not None and self.path.exists() and self.path.stat().st_size > written:
            os.truncate(self.path, written)
        self.written = written

    def _write(self, rows: list[Record]) -> None:
        assert self.path is not None
        data = "".join(json.dumps(r.to_dict(), allow_nan=False) + "\n" for r in rows).encode()
        try:
            with self.path.open("ab") as file:
                file.write(data)
            self.written += len(data)
        except OSError as error:
            warnings.warn(
                f"cannot write measurements; found: {error}; where: {self.path}; "
                "do: free the disk and attach the monitor again (training goes on, rows stay in memory)",
                stacklevel=2,
            )
            self.path = None

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [r.to_dict() for r in self.ring], "written": self.written, "lost": self.lost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ring.clear()
        self.ring.extend(Record.from_dict(r) for r in state["rows"])
        self.lost = int(state["lost"])
        self.truncate(int(state["written"]))


def _label(row: Record) -> str:
    return "/".join(
        x for x in (row.instrument, "" if row.layer == "*" else row.layer, row.part, row.variant) if x
    )
