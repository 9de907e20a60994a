"""What studies share: finished runs of a method, and an estimate as a short text."""

from __future__ import annotations

from pathlib import Path

from supple.bench.statistics import Estimate
from supple.errors import StoreError
from supple.store import StoredRun, load


def finished(folder: Path) -> dict[int, StoredRun]:
    """Seed -> run of one method."""
    found = {}
    for path in sorted(folder.glob("seed-*")):
        run = load(path)
        if not run.done:
            raise StoreError("this run is not finished", where=str(path), do="start the command again")
        found[run.manifest["run"]["seed"]] = run
    if not found:
        raise StoreError("there are no runs here", where=str(folder))
    return dict(sorted(found.items()))


def short(e: Estimate | None) -> str:
    """Value and interval, or that there is too little to tell.

    >>> short(None)
    'too few to tell'
    """
    if e is None:
        return "too few to tell"
    return f"{e.value:.3f}" + ("" if e.samples < 2 else f" [{e.lo:.3f}, {e.hi:.3f}]")
