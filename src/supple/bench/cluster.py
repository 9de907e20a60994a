"""The same run list on a Ray cluster: each job goes to a free core of any node that sees the folder of the runs."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from supple.bench.board import Board, Outcome, ProgressCallback
from supple.bench.jobs import RETRIES, Job, jobs, plan
from supple.bench.rows import Measure, observe_scene
from supple.bench.spec import RunSpec
from supple.errors import InputError, compose, need
from supple.store.files import explained, make_folder

#: what a worker takes over from the caller's environment
PASSED_ON = ("SUPPLE_DATA", "SUPPLE_CACHE")
#: seconds between two looks at how far the jobs are
TICK = 0.5
#: seconds that a cluster has to take a connection
KNOCK = 10.0


def run_list_on_ray(
    specs: Sequence[RunSpec],
    root: str | Path,
    *,
    progress: ProgressCallback | None = None,
    measure: Measure = observe_scene,
) -> Outcome:
    """`run_list` on a Ray cluster: what is not finished yet, one job a core, with equal results.

    The cluster is that of ``RAY_ADDRESS``, else one that runs on this machine, else Ray starts one here. Every node
    needs this package and its data, and must see ``root`` at the same path: results, checkpoints and locks are files.
    A job that lands on a node without it fails with that message. A worker or node that dies costs what its job did
    since the last checkpoint; the job goes on elsewhere, as often as in `run_list`.

    Args:
        specs, root, progress: as in `run_list`.
        measure: the instrument, a function that the nodes can import.

    Raises:
        MissingExtraError: Ray is not installed. InputError: no cluster answers.
    """
    ray = need("ray", "ray")
    home = Path(root).resolve()  # a worker has a working directory of its own
    folders, finished = plan(specs, root)
    board = Board(specs, finished, progress)
    todo = jobs(specs, (i for i in range(len(specs)) if i not in finished))
    if todo:
        with _connected(ray), _token(home) as token:
            _Flight(ray, home, token, board, measure).work(todo)
    return Outcome(folders, board.skipped, board.errors)


@contextlib.contextmanager
def _connected(ray: ModuleType) -> Iterator[None]:
    """A connection to the cluster; one that the caller has already is used and left open."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        _knock(address)
        ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            "no Ray cluster answers",
            found=error,
            where=f"RAY_ADDRESS={address}",
            do="start one (ray start --head), set RAY_ADDRESS to its address, or unset it for one on this machine",
        ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what Ray tells of its nodes is no result
            yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """An `OSError` at once where nobody listens at host:port; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK).close()


@contextlib.contextmanager
def _token(home: Path) -> Iterator[Path]:
    """A file by which a node sees that it has the folder of the caller and not one of its own by that name."""
    make_folder(home)
    token = home / f"seen-{uuid.uuid4().hex}.tmp"
    with explained("write", token):
        token.touch()
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


class _Mail:
    """An actor that jobs tell how far they are."""

    def __init__(self) -> None:
        self.shares: dict[tuple[int, ...], float] = {}

    def put(self, places: tuple[int, ...], share: float) -> None:
        self.shares[places] = share

    def take(self) -> dict[tuple[int, ...], float]:
        """What came since the last call."""
        found, self.shares = self.shares, {}
        return found


def _perform(
    job: Job, home: Path, token: Path, environment: Mapping[str, str], measure: Measure, mail: Any
) -> str | None:
    """A job on a node; the traceback, or why it was not begun, as text if it fails."""
    if not token.exists():
        return compose(
            "this node does not see the folder of the runs",
            found=platform.node(),
            where=str(home),
            do="put it on a file system that all nodes share, at the same path",
        )
    os.environ.update(environment)
    return job.perform(home, measure, lambda share: mail.put.remote(job.places, share))


class _Flight:
    """Jobs on their way through the cluster."""

    def __init__(self, ray: ModuleType, home: Path, token: Path, board: Board, measure: Measure) -> None:
        self.ray, self.board = ray, board
        # cores are for jobs: the actor takes none, and comes back if its node dies
        self.mail = ray.remote(_Mail).options(num_cpus=0, max_restarts=-1).remote()
        self.shared = (home, token, {k: v for k in PASSED_ON if (v := os.environ.get(k))}, measure)
        # Ray's own retries are off: deaths are counted here, as in the pool of processes
        self.perform = ray.remote(_perform).options(
            num_cpus=1, max_retries=0, scheduling_strategy="SPREAD", name="supple run"
        )
        self.flying: dict[Any, Job] = {}
        self.deaths: dict[tuple[int, ...], int] = {}

    def work(self, todo: Sequence[Job]) -> None:
        try:
            for job in todo:
                self._send(job)
            while self.flying:
                ready, _ = self.ray.wait(list(self.flying), timeout=TICK)
                self._hear()
                for reference in ready:
                    self._land(reference)
        finally:  # Ctrl-C: nobody waits for what is still flying
            for reference in self.flying:
                self.ray.cancel(reference, force=True)

    def _send(self, job: Job) -> None:
        self.flying[self.perform.remote(job, *self.shared, self.mail)] = job

    def _hear(self) -> None:
        try:
            shares = self.ray.get(self.mail.take.remote(), timeout=10 * TICK)
        except self.ray.exceptions.RayError:  # the actor is coming back; how far they are will be told again
            return
        going = {job.places for job in self.flying.values()}
        for places, share in shares.items():
            if places in going:
                self.board.progress(places, share)

    def _land(self, reference: Any) -> None:
        job, errors = self.flying.pop(reference), self.ray.exceptions
        try:
            self.board.end(job.places, self.ray.get(reference))
        except errors.RayTaskError as error:  # the job could not even be begun, and will not be next time
            self.board.end(job.places, str(error))
        except errors.RayError as error:  # its worker or node is gone
            deaths = self.deaths[job.places] = self.deaths.get(job.places, 0) + 1
            if deaths > RETRIES:
                why = str(error).strip().splitlines()[0]
                self.board.end(job.places, f"the worker process died {deaths} times, last with: {why}")
            else:
                self._send(job)
