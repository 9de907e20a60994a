"""`scan`: open each checkpoint, measure its matrices one at a time, compare the rounds, judge."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from supple.errors import InputError
from supple.records import Record, Records
from supple.scan.matrices import Matrix, Skipped, matrices
from supple.scan.measure import INSTRUMENTS, chosen, measure
from supple.scan.report import Failure, ScanReport
from supple.scan.sources import Checkpoint, open_checkpoint
from supple.scan.trend import trends
from supple.scan.verdict import judge

#: called with (checkpoint label, matrices measured so far in it)
Progress = Callable[[str, int], None]


def scan(
    paths: str | Path | Sequence[str | Path],
    *,
    instruments: tuple[str, ...] | str = INSTRUMENTS,
    embeddings: bool = False,
    budget: float | None = None,
    estimate: bool = False,
    progress: Progress | None = None,
) -> ScanReport:
    """Spectra and ranks of the weights on disk; with two or more checkpoints, round against round.

    Per matrix: sigma_1 / sum of sigma, sigma_1, effective, stable and threshold rank, norms, and the
    share of singular values below the rounding noise of the storage format. Exact (float64 Gram of the
    short side) unless ``estimate``; one tensor in memory at a time; nothing in a file is executed. A file that cannot
    be read
    becomes a failure with its message and the rest goes on.

    Args:
        paths: one checkpoint or the rounds in order: ``.safetensors``, ``.pt``/``.pth``/``.bin`` (tensors
            only), or a model folder with one or more shards.
        instruments: names from `supple.scan.INSTRUMENTS`, or ``"all"``.
        embeddings: measure embedding tables too.
        budget: seconds; matrices not reached by then are listed as not measured.
        estimate: matrices with a short side over 256 by stochastic Lanczos quadrature, each value with the
            relative error that it states of itself (``error`` of its record); srank and the noise floor are not
            measured then, and a change within the errors is no finding.
        progress: called as ``progress(label, matrices_done)`` after each matrix.

    Returns:
        A `ScanReport`; ``print`` it, or ``to_dict``, ``to_json``. Its ``failures`` name what was not read.

    Raises:
        InputError: no path at all, an unknown instrument, or a budget that is not positive.
    """
    names = chosen(instruments)
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    if not listed:
        raise InputError("no checkpoint was named", do="pass one path or the rounds in order")
    if budget is not None and not budget > 0:
        raise InputError("the budget must be a positive number of seconds", found=budget)
    deadline = None if budget is None else time.monotonic() + budget
    records, failures = Records(), []
    runs: list[str] = []
    skipped: dict[str, str] = {}
    for step, (path, label) in enumerate(zip(listed, _labels(listed), strict=True)):
        try:
            checkpoint = open_checkpoint(path, label)
            rows, left_out = _measure_all(
                checkpoint, lambda m, c=checkpoint, s=step: measure(m, c.label, s, names, estimate),
                embeddings, deadline, progress,
            )  # fmt: skip
        except InputError as error:
            failures.append(Failure(str(path), str(error)))
            continue
        runs.append(label)
        records.extend(rows)
        skipped.update(left_out)
    series = trends(records, runs) if len(runs) > 1 else []
    return ScanReport(
        tuple(runs),
        records,
        tuple(series),
        judge(records, series, runs, skipped),
        tuple(Skipped(k, v) for k, v in skipped.items()),
        tuple(failures),
    )


def _labels(paths: Sequence[str | Path]) -> list[str]:
    """File names where they tell the paths apart, otherwise the paths from where they differ."""
    full = [Path(os.path.abspath(p)) for p in paths]
    if len({p.name for p in full}) == len(full):
        return [p.name for p in full]
    if len(set(full)) < len(full):
        return [f"{i}: {p.name}" for i, p in enumerate(full)]
    root = Path(os.path.commonpath(full))
    return [p.relative_to(root).as_posix() for p in full]


def _measure_all(
    checkpoint: Checkpoint,
    look: Callable[[Matrix], list[Record]],
    embeddings: bool,
    deadline: float | None,
    progress: Progress | None,
) -> tuple[Records, dict[str, str]]:
    records, skipped, done = Records(), {}, 0
    for item in matrices(checkpoint, embeddings):
        if isinstance(item, Skipped):
            skipped[item.layer] = item.reason
        elif deadline is not None and time.monotonic() > deadline:
            skipped[f"{item.layer} {item.part}".strip()] = "the time budget was spent"
        else:
            records.extend(look(item))
            done += 1
            if progress is not None:
                progress(checkpoint.label, done)
    return records, skipped
