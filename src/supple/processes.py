"""Jobs in worker processes: results in the order of the jobs, a death told from a result, nothing left running."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from supple.errors import InputError

#: called by a job with anything it wants to say before it is done
Tell = Callable[[Any], None]


@dataclass(frozen=True)
class Died:
    """In the place of a result: the process that worked on this job ended on its own."""

    exitcode: int | None

    def __str__(self) -> str:
        return f"the process that worked on it died with exit code {self.exitcode}"


def spread(
    work: Callable[[Any, Tell], Any],
    jobs: Sequence[Any],
    workers: int,
    heard: Callable[[int, Any], None] | None = None,
) -> list[Any]:
    """``work(job, tell)`` of every job, in spawned processes of one torch thread each; results in order.

    A process that dies gives `Died` in the place of its job's result, and another takes its place. An exception of
    a job is raised here, as Ctrl-C is; both end all processes first.

    Args:
        work: a module-level function; it and the jobs are pickled. Its ``tell(x)`` calls ``heard`` in this process.
        jobs: what to do, in order.
        workers: processes at most; 0 works in this process.
        heard: called as ``heard(place of the job, what was told)``.

    Raises:
        InputError: a negative number of workers.

    >>> spread(max, [], 2)
    []
    """
    if workers < 0:
        raise InputError("workers cannot be negative", found=workers)
    listen = heard or (lambda place, told: None)
    if workers == 0:
        return [work(job, lambda told, i=i: listen(i, told)) for i, job in enumerate(jobs)]
    return _Pool(work, jobs, listen).run(min(workers, len(jobs)))


def end_with_parent() -> None:
    """For a thread of a worker: ends the worker with its parent, however that ends, at any moment, as by a kill."""
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _serve(connection: Connection, work: Callable[[Any, Tell], Any]) -> None:
    """A worker: takes jobs until it gets None. The parent alone handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    # a parent that is gone may show as a broken pipe before the watch has seen it
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):
        while (message := connection.recv()) is not None:
            try:
                answer = ("result", work(message[0], lambda told: connection.send(("told", told))))
            except (BrokenPipeError, EOFError, ConnectionResetError):
                raise
            except Exception as error:
                answer = ("error", error)
            connection.send(answer)


class _Pool:
    def __init__(
        self, work: Callable[[Any, Tell], Any], jobs: Sequence[Any], heard: Callable[[int, Any], None]
    ) -> None:
        self.work, self.jobs, self.heard = work, jobs, heard
        self.results: list[Any] = [None] * len(jobs)
        self.next = 0
        self.alive: dict[Connection, tuple[mp.process.BaseProcess, int]] = {}

    def run(self, size: int) -> list[Any]:
        try:
            for _ in range(size):
                self._hire()
            while self.alive:
                for ready in wait(list(self.alive)):
                    assert isinstance(ready, Connection)  # nothing else was waited for
                    self._hear(ready)
        finally:
            for connection, (process, _) in self.alive.items():
                process.kill()
                process.join()
                connection.close()
        return self.results

    def _hire(self) -> None:
        if self.next == len(self.jobs):
            return
        context = mp.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.work), daemon=True)
        process.start()
        theirs.close()
        self.alive[ours] = (process, -1)
        self._give(ours)

    def _give(self, connection: Connection) -> None:
        process, _ = self.alive[connection]
        if self.next < len(self.jobs):
            place, self.next = self.next, self.next + 1
            self.alive[connection] = (process, place)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death is heard next
                connection.send((self.jobs[place],))
            return
        with contextlib.suppress(OSError):
            connection.send(None)
        self._part(connection)

    def _part(self, connection: Connection) -> int | None:
        process, _ = self.alive.pop(connection)
        process.join()
        connection.close()
        return process.exitcode

    def _hear(self, connection: Connection) -> None:
        place = self.alive[connection][1]
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            self.results[place] = Died(self._part(connection))
            self._hire()
            return
        if kind == "told":
            self.heard(place, value)
        elif kind == "error":
            raise value
        else:
            self.results[place] = value
            self._give(connection)
