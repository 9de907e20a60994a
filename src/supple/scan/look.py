"""One checkpoint from the open file to its rows: the job of one process, or of one turn of the loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from supple.errors import InputError
from supple.records import Record
from supple.scan.expected import Expectation, Start, compare, start_of
from supple.scan.lora import Base
from supple.scan.matrices import Skipped
from supple.scan.measure import measure
from supple.scan.sources import open_checkpoint
from supple.scan.walk import matrices


@dataclass(frozen=True)
class Settings:
    """What holds for every checkpoint of a scan; ``limit`` in bytes, ``deadline`` on the monotonic clock."""

    instruments: tuple[str, ...]
    embeddings: bool = False
    estimate: bool = False
    deadline: float | None = None
    limit: int | None = None
    base: str | None = None


@dataclass(frozen=True)
class Job:
    """One checkpoint to look at, and its place in the rounds."""

    path: str
    label: str
    step: int
    settings: Settings


@dataclass
class Seen:
    """What one checkpoint gave; ``failure`` is the message where it was not read, and then the rest is empty."""

    records: list[Record] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    expected: list[Expectation] = field(default_factory=list)
    start: Start | None = None
    failure: str = ""


def look(job: Job, tell: Callable[[int], None]) -> Seen:
    """Measure every matrix of one checkpoint; ``tell`` hears how many are done after each."""
    try:
        return _look(job, tell)
    except InputError as error:
        return Seen(failure=str(error))


def _look(job: Job, tell: Callable[[int], None]) -> Seen:
    s = job.settings
    checkpoint = open_checkpoint(job.path, job.label, s.limit)
    base = None if s.base is None else Base(open_checkpoint(s.base, limit=s.limit))
    seen, done = Seen(start=start_of(checkpoint.config)), 0
    assert seen.start is not None
    for item in matrices(checkpoint, s.embeddings, base=base, limit=s.limit, estimate=s.estimate):
        if isinstance(item, Skipped):
            seen.skipped[item.layer] = item.reason
        elif s.deadline is not None and time.monotonic() > s.deadline:
            seen.skipped[f"{item.layer} {item.part}".strip()] = "the time budget was spent"
        else:
            rows = measure(item, job.label, job.step, s.instruments, s.estimate)
            seen.records += rows
            seen.expected += compare(item, rows, seen.start)
            done += 1
            tell(done)
    return seen
