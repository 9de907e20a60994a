"""Run a list of runs with a bar, and make what failed one message."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from supple.cli.console import Progress
from supple.errors import StoreError

if TYPE_CHECKING:
    from supple.bench import Progress as Standing
    from supple.bench import RunSpec


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train(
    title: str, specs: Sequence[RunSpec], root: Path, workers: int | None = None, *, on_ray: bool = False
) -> list[Path]:
    """Compute what is not finished, in processes of one thread here or on a Ray cluster, and return the folders.

    Raises:
        StoreError: a run failed; the others were finished first, and their results are kept.
    """
    from supple.bench import run_list, run_list_on_ray

    # Workers are spawned and inherit this: small networks get slower with more threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with Progress(title) as bar:

        def progress(standing: Standing) -> None:
            detail = f"{standing.done} of {standing.total} runs"
            bar.update(standing.fraction, detail, standing.seconds_left)

        if on_ray:
            outcome = run_list_on_ray(specs, root, progress=progress)
        else:
            outcome = run_list(specs, root, workers=workers or cores(), progress=progress)
    if not outcome.ok:
        label, trace = next(iter(outcome.errors.items()))
        raise StoreError(
            f"{len(outcome.errors)} of {len(specs)} runs failed",
            found=trace.strip().splitlines()[-1],
            where=label,
            do="start the command again to retry; finished runs are kept",
        )
    return outcome.folders
