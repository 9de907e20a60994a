"""`scan`: open each checkpoint, measure its matrices one at a time, compare the rounds, judge."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from supple.errors import InputError
from supple.processes import Died, spread
from supple.records import Records
from supple.scan.look import Job, Seen, Settings, look
from supple.scan.matrices import Skipped
from supple.scan.measure import INSTRUMENTS, chosen
from supple.scan.memory import MIB
from supple.scan.report import Failure, ScanReport
from supple.scan.sources import open_checkpoint
from supple.scan.trend import not_compared, trends
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
    base: str | Path | None = None,
    memory: float | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> ScanReport:
    """Spectra and ranks of the weights on disk; with two or more checkpoints, round against round.

    Per matrix: sigma_1 / sum of sigma, sigma_1, effective, stable and threshold rank, norms, and the
    share of singular values below the rounding noise of the storage format. Exact (float64 Gram of the
    short side) unless ``estimate``; one tensor in memory at a time; nothing in a file is executed. A file that cannot
    be read becomes a failure with its message and the rest goes on. The first checkpoint is also set against its
    expected spectrum at initialisation where its ``config.json`` tells how it began.

    Args:
        paths: one checkpoint or the rounds in order: ``.safetensors``, ``.pt``/``.pth``/``.ckpt``/``.bin`` (tensors
            only), a model folder with one or more shards, or the folder of a LoRA adapter, whose products
            scale * B A are measured through QR of their thin factors.
        instruments: names from `supple.scan.INSTRUMENTS`, or ``"all"``.
        embeddings: measure embedding tables too.
        budget: seconds; matrices not reached by then are listed as not measured.
        estimate: matrices with a short side over 256 by stochastic Lanczos quadrature, each value with the
            relative error that it states of itself (``error`` of its record); srank and the noise floor are not
            measured then, and a change within the errors is no finding.
        base: the model that adapters were trained on: an adapter is measured as W + scale * B A under the base's
            names; checkpoints without adapters are measured as they are (name the base first to have it as round 0).
            An adapter that does not fit it is a failure with the matrix that is missing or of another shape.
        memory: MiB that the tensors and the work on them may take, beside the process itself, in all processes
            together. It is checked before a tensor is read: what would go over is estimated where that fits, and
            listed as not measured otherwise.
        workers: spawned processes of one torch thread each that take a checkpoint at a time; 0 works in this process.
            A process that dies is a failure of its checkpoint.
        progress: called as ``progress(label, matrices_done)`` after each matrix.

    Returns:
        A `ScanReport`; ``print`` it, or ``to_dict``, ``to_json``, ``to_parquet``, ``to_html``. Its ``failures`` name
        what was not read.

    Raises:
        InputError: no path at all, an unknown instrument, a budget or memory that is not positive, negative workers,
            or a base that cannot be read.
    """
    names = chosen(instruments)
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    if not listed:
        raise InputError("no checkpoint was named", do="pass one path or the rounds in order")
    for what, value in (("budget", budget), ("memory", memory)):
        if value is not None and not value > 0:
            raise InputError(f"the {what} must be a positive number", found=value)
    if base is not None:
        open_checkpoint(base)
    settings = Settings(
        names, embeddings, estimate,
        deadline=None if budget is None else time.monotonic() + budget,
        limit=None if memory is None else int(memory * MIB / max(1, min(workers, len(listed)))),
        base=None if base is None else str(base),
    )  # fmt: skip
    labels = _labels(listed)
    jobs = [Job(str(p), label, i, settings) for i, (p, label) in enumerate(zip(listed, labels, strict=True))]
    heard = None if progress is None else lambda place, done: progress(labels[place], done)
    return _report(jobs, spread(look, jobs, workers, heard))


def _report(jobs: Sequence[Job], answers: Sequence[Seen | Died]) -> ScanReport:
    records, failures, runs = Records(), [], []
    skipped: dict[str, str] = {}
    first: Seen | None = None
    for job, seen in zip(jobs, answers, strict=True):
        if isinstance(seen, Died) or seen.failure:
            message = seen.failure if isinstance(seen, Seen) else f"{seen}; where: {job.path}"
            failures.append(Failure(job.path, message))
            continue
        first = first or seen
        runs.append(job.label)
        records.extend(seen.records)
        skipped.update(seen.skipped)
    series = trends(records, runs) if len(runs) > 1 else []
    left = not_compared(records, runs)
    return ScanReport(
        tuple(runs),
        records,
        tuple(series),
        judge(records, series, runs, skipped | {s.layer: s.reason for s in left}),
        tuple(Skipped(k, v) for k, v in skipped.items()),
        tuple(failures),
        tuple(first.expected) if first is not None else (),
        first.start.reason if first is not None and first.start is not None else "",
        tuple(left),
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
