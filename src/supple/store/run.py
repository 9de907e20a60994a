"""A run that is being written: manifest, records, arrays, checkpoints, summary."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from supple.errors import StoreError
from supple.records import Record, Records
from supple.store import checkpoints
from supple.store.encode import encode_plain
from supple.store.files import (
    Appender,
    Lock,
    make_folder,
    read_sealed,
    remove_temporary,
    safe_name,
    sha256,
    write_atomic,
    write_sealed,
)
from supple.store.identity import environment, refuse_foreign, refuse_other, refuse_other_versions
from supple.store.read import check_records, read_records, read_summary

FORMAT = 1


class Run:
    """A run folder open for writing. One process at a time; everything on disk survives a kill at any moment.

    ::

        manifest.json      what the run is (sealed with its SHA-256), versions, git state
        records.jsonl      one line a record, append-only
        arrays/            tensors that records refer to (safetensors)
        checkpoints/       the two newest states
        times.jsonl        timestamps and durations: all that differs between two equal runs
        summary.json       written by `finish`: the result and the SHA-256 of records and arrays

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> run = Run.open(folder, {"protocol": "demo", "seed": 0})
    >>> run.append([Record("loss", 0.5, step=1)])
    >>> run.checkpoint({"step": 1}); run.close()
    >>> again = Run.open(folder, {"protocol": "demo", "seed": 0})
    >>> again.resume(), len(again.records())
    ({'step': 1}, 1)
    >>> again.finish({"loss": 0.5}); again.done
    True
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], lock: Lock) -> None:
        self.folder, self.manifest, self._lock = folder, manifest, lock
        self._records = Appender(folder / "records.jsonl")
        self._times = Appender(folder / "times.jsonl")
        self._started = time.monotonic()
        # without `resume` the run continues nothing, so nothing may be appended after an older part
        self._fresh = self._records.offset == 0

    @classmethod
    def open(cls, folder: str | Path, manifest: Mapping[str, Any], *, wait: float = 0.0) -> Run:
        """Make the folder, or open the one that is there if it is the same run.

        Args:
            folder: made with its parents when absent.
            manifest: what identifies the run (plain types): configuration, seeds. The store adds
                versions and git state.
            wait: seconds to wait for another process to let go of the folder.

        Raises:
            StoreError: a folder of another configuration (says what differs), one that was begun with
                other versions and is not finished, one in use, one that cannot be written.
        """
        path = Path(folder)
        identity = encode_plain(dict(manifest), "manifest")
        make_folder(path)
        refuse_foreign(path)
        lock = Lock(path / "lock", wait)
        with ExitStack() as undo:
            undo.callback(lock.release)
            remove_temporary(path)
            run = cls(path, cls._agree(path, identity), lock)
            undo.pop_all()
        return run

    @staticmethod
    def check(folder: str | Path, manifest: Mapping[str, Any]) -> bool:
        """Whether the run is there and finished, its records those that were sealed; changes nothing.

        Raises:
            StoreError: a folder of another configuration, or with other things in it; a damaged run.
        """
        path = Path(folder)
        if not path.exists():
            return False
        refuse_foreign(path)
        target = path / "manifest.json"
        if target.exists():
            refuse_other(path, read_sealed(target), encode_plain(dict(manifest), "manifest"), FORMAT)
        sealed = read_summary(path)
        if sealed is not None:
            check_records(path, sealed)
        return sealed is not None

    @staticmethod
    def _agree(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
        target = path / "manifest.json"
        if not target.exists():
            body = {"format": FORMAT, "run": identity, **environment()}
            write_sealed(target, body)
            return body
        body = read_sealed(target)
        refuse_other(path, body, identity, FORMAT)
        if read_summary(path) is None:
            refuse_other_versions(path, body)
        return body

    # -- writing --------------------------------------------------------------------------------
    def append(self, rows: Iterable[Record]) -> None:
        """Append records, one write per line."""
        self._writable()
        for row in rows:
            line = json.dumps(row.to_dict(), allow_nan=False, separators=(",", ":"))
            self._records.line(line.encode() + b"\n")

    def arrays(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors beside the records as ``arrays/<name>.safetensors``."""
        self._writable()
        target = self.folder / "arrays" / f"{safe_name(name)}.safetensors"
        make_folder(target.parent)
        write_atomic(
            target,
            safetensors.torch.save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}),
        )

    def checkpoint(self, state: Any) -> None:
        """Make everything so far durable: a later `resume` continues exactly here.

        ``state``: nested dicts, lists and tuples of tensors and plain types; anything else is refused
        by its path, before anything is written.
        """
        self._writable()
        self._records.sync()
        checkpoints.save(
            self.folder / "checkpoints", state, offset=self._records.offset, digest=self._records.digest()
        )
        self.time("checkpoint")

    def resume(self) -> Any | None:
        """The state of the last checkpoint, records cut back to it; None (and no records) without one.

        Raises:
            StoreError: every checkpoint is damaged or does not fit the records.
        """
        folder, damage = self.folder / "checkpoints", []
        for number in reversed(checkpoints.numbers(folder)):
            try:
                body = checkpoints.read(folder, number)
            except StoreError as error:
                damage.append(str(error))
                continue
            if self._records.prefix_digest(body["records_bytes"]) != body["records_sha256"]:
                damage.append(f"checkpoint {number} does not fit records.jsonl")
                continue
            self._records.truncate(body["records_bytes"])
            self._fresh = True
            self.time("resume", checkpoint=number, damaged=damage)
            return body["state"]
        if damage:
            raise StoreError(
                "no checkpoint of this run can be used", found="; ".join(damage), where=str(self.folder),
                do="remove the folder to compute the run again",
            )  # fmt: skip
        self._records.truncate(0)
        self._fresh = True
        return None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Seal the run: the summary with the checksums of records and arrays."""
        self._writable()
        self._records.sync()
        arrays = sorted((self.folder / "arrays").glob("*.safetensors"))
        body = {
            "summary": encode_plain(dict(summary), "summary"),
            "records": {"bytes": self._records.offset, "sha256": self._records.digest()},
            "arrays": {p.stem: sha256(p.read_bytes()) for p in arrays},
        }
        write_sealed(self.folder / "summary.json", body)
        self.time("finish")

    def time(self, event: str, **facts: Any) -> None:
        """A line in times.jsonl: wall-clock time and seconds since this process opened the run."""
        row = {"event": event, "at": time.time(), "seconds": time.monotonic() - self._started, **facts}
        self._times.line(json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        """Let go of the folder. The run can be opened again."""
        self._records.close()
        self._times.close()
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- reading --------------------------------------------------------------------------------
    @property
    def done(self) -> bool:
        return read_summary(self.folder) is not None

    def records(self) -> Records:
        """All records so far."""
        return read_records(self.folder, partial=True)

    def _writable(self) -> None:
        if (self.folder / "summary.json").exists():
            raise StoreError(
                "this run is finished",
                where=str(self.folder),
                do="open a new folder, or read it with store.load",
            )
        if not self._fresh:
            raise StoreError(
                "this folder holds a part of the run already",
                where=str(self.folder),
                do="call resume() first",
            )
