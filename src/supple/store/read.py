"""Reading a run: manifest, records, arrays, state, checked against their checksums."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from supple.errors import StoreError
from supple.records import Record, Records
from supple.store import checkpoints
from supple.store.encode import decode
from supple.store.files import DAMAGED, explained, read_sealed, safe_name, sha256


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The sealed summary, or None for a run that is not finished."""
    target = folder / "summary.json"
    return read_sealed(target) if target.exists() else None


def read_records(folder: Path, *, partial: bool) -> Records:
    """Rows of records.jsonl. ``partial``: the last line may have been cut by a kill and is then left out."""
    path = folder / "records.jsonl"
    if not path.exists():
        return Records()
    with explained("read", path):
        data = path.read_bytes()
    lines = data.split(b"\n")
    tail = lines.pop()  # empty after a complete last line
    if tail and not partial:
        raise StoreError("the last record is incomplete", where=str(path))
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(Record.from_dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise StoreError("not a record", found=str(error), where=f"{path}, line {number}") from error
    return Records(rows)


@dataclass(frozen=True)
class StoredRun:
    """A run on disk, read-only. ``summary`` is None while the run is not finished."""

    folder: Path
    manifest: dict[str, Any]
    records: Records
    summary: dict[str, Any] | None
    array_checksums: dict[str, str]

    @property
    def done(self) -> bool:
        return self.summary is not None

    @property
    def array_names(self) -> list[str]:
        return sorted(p.stem for p in (self.folder / "arrays").glob("*.safetensors"))

    def arrays(self, name: str) -> dict[str, Tensor]:
        """The tensors kept under ``name``; in a finished run their checksum is compared first."""
        path = self.folder / "arrays" / f"{safe_name(name)}.safetensors"
        with explained("read", path):
            data = path.read_bytes()
        if self.done and self.array_checksums.get(name) != sha256(data):
            raise StoreError("the checksum does not match: the file was changed or damaged", where=str(path))
        try:
            return dict(sorted(safetensors.torch.load(data).items()))
        except SafetensorError as error:
            raise StoreError("not a safetensors file", found=str(error), where=str(path)) from error

    def state(self) -> Any:
        """State of the last checkpoint; of a finished run, the worn network it ended with."""
        folder = self.folder / "checkpoints"
        known = checkpoints.numbers(folder)
        if not known:
            raise StoreError("this run has no checkpoint yet", where=str(self.folder))
        return checkpoints.read(folder, known[-1])["state"]


def load(folder: str | Path) -> StoredRun:
    """Read a run without changing it. Nothing in it is executed.

    Raises:
        StoreError: no run there, a damaged file, a checksum that does not match.
    """
    path = Path(folder)
    if not (path / "manifest.json").exists():
        raise StoreError("there is no run here", where=str(path), do="give the folder that has manifest.json")
    manifest = read_sealed(path / "manifest.json")
    sealed = read_summary(path)
    if sealed is not None:
        check_records(path, sealed)
    return StoredRun(
        folder=path,
        manifest={**manifest, "run": decode(manifest["run"], {})},
        records=read_records(path, partial=sealed is None),
        summary=None if sealed is None else decode(sealed["summary"], {}),
        array_checksums={} if sealed is None else dict(sealed["arrays"]),
    )


def check_records(folder: Path, sealed: dict[str, Any]) -> None:
    """Raise unless the records are those that the summary was sealed with."""
    path, expected = folder / "records.jsonl", sealed["records"]
    with explained("read", path):
        data = path.read_bytes()
    if len(data) != expected["bytes"] or sha256(data) != expected["sha256"]:
        raise StoreError("the records do not match the checksum in summary.json", where=str(path), do=DAMAGED)
