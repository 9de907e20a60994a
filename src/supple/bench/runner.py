"""Many runs on the cores of one machine: a run list, long-lived workers, progress, and nothing lost."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import signal
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from supple.bench.board import Board, Outcome, ProgressCallback
from supple.bench.jobs import RETRIES, Job, jobs, plan
from supple.bench.rows import Measure, observe_scene
from supple.bench.spec import RunSpec
from supple.errors import InputError
from supple.processes import end_with_parent


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
    if workers < 0:
        raise InputError("workers cannot be negative", found=workers)
    folders, finished = plan(specs, root)
    board = Board(specs, finished, progress)
    todo = deque(jobs(specs, (i for i in range(len(specs)) if i not in finished)))
    if workers == 0:
        _run_here(root, todo, board, measure)
    elif todo:
        _Pool(root, todo, board, measure, min(workers, len(todo))).work()
    return Outcome(folders, board.skipped, board.errors)


def _run_here(root: str | Path, todo: deque[Job], board: Board, measure: Measure) -> None:
    while todo:
        job = todo.popleft()
        error = job.perform(root, measure, lambda share, job=job: board.progress(job.places, share))
        board.end(job.places, error)


def _serve(connection: Connection, root: str | Path, measure: Measure) -> None:
    """A worker: takes jobs until it gets None. The parent alone handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    # a parent that is gone may show as a broken pipe before the watch has seen it
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

    def __init__(self, root: str | Path, todo: deque[Job], board: Board, measure: Measure, size: int) -> None:
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
