"""Many runs on the cores of one machine: a run list, long-lived workers, progress, and nothing lost."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from supple.bench.jobs import Job, jobs
from supple.bench.rows import Measure, observe_scene
from supple.bench.spec import RunSpec
from supple.errors import InputError
from supple.store import Run

#: a run whose worker died (out of memory, kill) is tried again this often; it resumes where it was
RETRIES = 2


@dataclass(frozen=True)
class Progress:
    """Where a run list stands. ``seconds_left`` is None until there is a rate to judge by."""

    fraction: float
    done: int
    total: int
    seconds_left: float | None
    running: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass
class Outcome:
    """What became of a run list: folders in the order of the list, and errors by label."""

    folders: list[Path]
    skipped: int = 0
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.errors


ProgressCallback = Callable[[Progress], None]


def run_list(
    specs: Sequence[RunSpec],
    root: str | Path,
    *,
    workers: int = 2,
    progress: ProgressCallback | None = None,
    measure: Measure = observe_scene,
) -> Outcome:
    """Compute every run of the list that is not finished yet.

    Each worker is a spawned process with one torch thread. A run that fails is reported with its
    traceback and the others go on; a worker that dies is replaced and its run resumed. Ctrl-C ends the
    workers and is raised again; calling once more continues.

    Args:
        specs: the runs, no two with one folder. root: where their folders go.
        workers: processes; 0 computes in this process.
        progress: called after every task of every run.
        measure: the instrument; a module-level function when there are workers, since it is sent to them.

    >>> run_list([], "runs").ok
    True
    """
    folders = [spec.folder(root) for spec in specs]
    finished = {i for i, spec in enumerate(specs) if Run.check(folders[i], spec.manifest())}
    if len(set(folders)) != len(folders):
        raise InputError(
            "two runs of the list have the same folder", do="give each protocol, method and seed once"
        )
    if workers < 0:
        raise InputError("workers cannot be negative", found=workers)
    board = _Board(specs, finished, progress)
    todo = deque(jobs(specs, (i for i in range(len(specs)) if i not in finished)))
    if workers == 0:
        _run_here(root, todo, board, measure)
    elif todo:
        _Pool(root, todo, board, measure, min(workers, len(todo))).work()
    return Outcome(folders, board.skipped, board.errors)


class _Board:
    """Who is how far; turns events into `Progress`."""

    def __init__(
        self, specs: Sequence[RunSpec], finished: set[int], callback: ProgressCallback | None
    ) -> None:
        self.specs, self.callback = specs, callback
        self.finished = finished
        self.skipped = len(self.finished)
        self.share = dict.fromkeys(self.finished, 1.0)
        self.running: set[int] = set()
        self.errors: dict[str, str] = {}
        self.started = time.monotonic()
        self.before: dict[int, float] = {}  # share that earlier calls had computed already
        self.total = sum(s.cost for s in specs)
        self.tell()

    def progress(self, places: Iterable[int], share: float) -> None:
        for place in places:
            self.running.add(place)
            self.before.setdefault(place, share)
            self.share[place] = share
        self.tell()

    def end(self, places: Iterable[int], error: str | None = None) -> None:
        for place in places:
            self.running.discard(place)
            if error is None:
                self.finished.add(place)
                self.share[place] = 1.0
            else:
                self.errors[self.specs[place].label] = error
        self.tell()

    def tell(self) -> None:
        if self.callback is None:
            return
        done = sum(self.specs[i].cost * share for i, share in self.share.items())
        here = sum(self.specs[i].cost * (self.share[i] - b) for i, b in self.before.items())
        failed = [i for i, s in enumerate(self.specs) if s.label in self.errors]
        lost = sum(self.specs[i].cost * (1.0 - self.share.get(i, 0.0)) for i in failed)
        left = max(self.total - done - lost, 0.0)
        elapsed = time.monotonic() - self.started
        self.callback(
            Progress(
                fraction=1.0 if self.total == 0 else (done + lost) / self.total,
                done=len(self.finished),
                total=len(self.specs),
                seconds_left=0.0 if left == 0 else (elapsed * left / here if here > 0 else None),
                running=tuple(self.specs[i].label for i in sorted(self.running)),
                failed=tuple(self.errors),
            )
        )


def _run_here(root: str | Path, todo: deque[Job], board: _Board, measure: Measure) -> None:
    while todo:
        job = todo.popleft()
        error = job.perform(root, measure, lambda share, job=job: board.progress(job.places, share))
        board.end(job.places, error)


def _serve(connection: Connection, root: str | Path, measure: Measure) -> None:
    """A worker: takes jobs until it gets None. The parent alone handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # a parent that is gone shows as a broken pipe at the next message, and ends the worker
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):
        while (job := connection.recv()) is not None:
            error = job.perform(root, measure, lambda share: connection.send(("share", share)))
            connection.send(("end", error))


class _Worker:
    def __init__(self, root: str | Path, measure: Measure) -> None:
        context = mp.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, root, measure), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None

    def give(self, job: Job) -> None:
        self.job = job
        self.connection.send(job)

    def dismiss(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(None)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Pool:
    """Hands out runs and replaces workers that die."""

    def __init__(
        self, root: str | Path, todo: deque[Job], board: _Board, measure: Measure, size: int
    ) -> None:
        self.root, self.todo, self.board, self.measure = root, todo, board, measure
        self.deaths: dict[tuple[int, ...], int] = {}
        self.workers: list[_Worker] = []
        self.size = size

    def work(self) -> None:
        try:
            self.workers = [_Worker(self.root, self.measure) for _ in range(self.size)]
            for worker in list(self.workers):
                self._next(worker)
            while self.workers:
                for ready in wait([w.connection for w in self.workers]):
                    worker = next(w for w in self.workers if w.connection is ready)
                    self._hear(worker)
        finally:
            for worker in self.workers:
                worker.end()

    def _next(self, worker: _Worker) -> None:
        if self.todo:
            worker.give(self.todo.popleft())
        else:
            self.workers.remove(worker)
            worker.dismiss()
            worker.process.join()
            worker.connection.close()

    def _hear(self, worker: _Worker) -> None:
        try:
            message: tuple[str, Any] = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        kind, value = message
        assert worker.job is not None  # a worker speaks of the job it was given
        places = worker.job.places
        if kind == "share":
            self.board.progress(places, value)
        else:
            worker.job = None
            self.board.end(places, value)
            self._next(worker)

    def _bury(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.end()
        job = worker.job
        if job is not None:
            deaths = self.deaths[job.places] = self.deaths.get(job.places, 0) + 1
            if deaths > RETRIES:
                code = worker.process.exitcode
                self.board.end(
                    job.places, f"the worker process died {deaths} times, last with exit code {code}"
                )
            else:
                self.todo.appendleft(job)
        if self.todo:
            replacement = _Worker(self.root, self.measure)
            self.workers.append(replacement)
            self._next(replacement)
