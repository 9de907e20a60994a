"""Many runs on the cores of one machine: a run list, long-lived workers, progress, and nothing lost."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from supple.bench.loop import run
from supple.bench.rows import Measure, observe_scene
from supple.bench.spec import RunSpec
from supple.errors import InputError
from supple.store import Run

#: a run whose worker died (out of memory, kill) is tried again this often; it resumes where it was
RETRIES = 2
#: seconds a new worker waits for one that is still letting go of the folder
LOCK_WAIT = 60.0


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
    todo = deque(i for i, folder in enumerate(folders) if i not in finished)
    if workers == 0:
        _run_here(specs, root, todo, board, measure)
    elif todo:
        _Pool(specs, root, todo, board, measure, min(workers, len(todo))).work()
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

    def progress(self, index: int, share: float) -> None:
        self.running.add(index)
        self.before.setdefault(index, share)
        self.share[index] = share
        self.tell()

    def end(self, index: int, error: str | None = None) -> None:
        self.running.discard(index)
        if error is None:
            self.finished.add(index)
            self.share[index] = 1.0
        else:
            self.errors[self.specs[index].label] = error
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


def _run_here(
    specs: Sequence[RunSpec], root: str | Path, todo: deque[int], board: _Board, measure: Measure
) -> None:
    while todo:
        index = todo.popleft()
        error = _attempt(specs[index], root, measure, lambda share, i=index: board.progress(i, share))
        board.end(index, error)


def _attempt(
    spec: RunSpec, root: str | Path, measure: Measure, progress: Callable[[float], None]
) -> str | None:
    """Run; the traceback as text if it fails.

    Whatever a run raises ends here, since one failing run must not take the list with it.
    """
    try:
        run(spec, root, measure=measure, progress=progress, wait=LOCK_WAIT)
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except Exception:
        return traceback.format_exc()
    return None


def _serve(connection: Connection, root: str | Path, measure: Measure) -> None:
    """A worker: takes (index, spec) until it gets None. The parent alone handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # a parent that is gone shows as a broken pipe at the next message, and ends the worker
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):
        while (job := connection.recv()) is not None:
            index, spec = job
            error = _attempt(spec, root, measure, lambda share, i=index: connection.send(("share", i, share)))
            connection.send(("end", index, error))


class _Worker:
    def __init__(self, root: str | Path, measure: Measure) -> None:
        context = mp.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, root, measure), daemon=True)
        self.process.start()
        theirs.close()
        self.job: int | None = None

    def give(self, index: int, spec: RunSpec) -> None:
        self.job = index
        self.connection.send((index, spec))

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
        self,
        specs: Sequence[RunSpec],
        root: str | Path,
        todo: deque[int],
        board: _Board,
        measure: Measure,
        size: int,
    ) -> None:
        self.specs, self.root, self.todo, self.board, self.measure = specs, root, todo, board, measure
        self.deaths: dict[int, int] = {}
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
            index = self.todo.popleft()
            worker.give(index, self.specs[index])
        else:
            self.workers.remove(worker)
            worker.dismiss()
            worker.process.join()
            worker.connection.close()

    def _hear(self, worker: _Worker) -> None:
        try:
            message: tuple[str, int, Any] = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        kind, index, value = message
        if kind == "share":
            self.board.progress(index, value)
        else:
            worker.job = None
            self.board.end(index, value)
            self._next(worker)

    def _bury(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.end()
        index = worker.job
        if index is not None:
            self.deaths[index] = self.deaths.get(index, 0) + 1
            if self.deaths[index] > RETRIES:
                code = worker.process.exitcode
                self.board.end(
                    index, f"the worker process died {self.deaths[index]} times, last with exit code {code}"
                )
            else:
                self.todo.appendleft(index)
        if self.todo:
            replacement = _Worker(self.root, self.measure)
            self.workers.append(replacement)
            self._next(replacement)
