"""The loop engine: one run from its key to its sealed folder, through any number of kills."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch

from supple.bench.kept import kept_rows, looked_back
from supple.bench.rows import Measure, measured_rows, observe_scene, summarise, task_rows
from supple.bench.spec import RunSpec
from supple.store import Run

#: called with the share of the run that is done
Progress: TypeAlias = Callable[[float], None]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread and no denormals: nets this small lose speed with more threads, and a resumed run
    must round as the first part did."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def run(
    spec: RunSpec,
    root: str | Path,
    *,
    measure: Measure = observe_scene,
    progress: Progress | None = None,
    wait: float = 0.0,
) -> Path:
    """Compute one run, or the rest of it; a finished run is left as it is.

    Writes, for every task, online and end accuracy (or the protocol's other metric) and ``online_loss``, what
    ``measure`` says at the measured tasks, and there and at the end what is kept of earlier tasks. The last checkpoint
    holds the worn network.

    Args:
        spec: the run. root: results go to ``root/protocol/method/seed-n``.
        measure: the instrument. progress: told the share that is done, after every task.
        wait: seconds to wait for another process that has the folder.

    Returns:
        The folder.
    """
    folder = spec.folder(root)
    with Run.open(folder, spec.manifest(), wait=wait) as store:
        if store.done:
            return folder
        with one_thread(), torch.random.fork_rng(devices=[]):
            _continue(spec, store, measure, progress)
    return folder


def _continue(spec: RunSpec, store: Run, measure: Measure, progress: Progress | None) -> None:
    learner, tasks = spec.protocol.learner(spec), spec.protocol.tasks
    state = store.resume()
    first = 0
    if state is not None:
        first = state["task"]
        learner.load_state_dict(state["learner"])
    stream, measured = spec.protocol.sequence(spec.seed), spec.measured()
    memory: dict[str, Any] = {}
    for index in range(first, tasks):
        if progress is not None:
            progress(index / tasks)
        task = stream.task(index)
        learner.start(index)
        result = learner.learn(task)
        store.append(task_rows(spec, learner.steps, task, result, learner.score(task)))
        if index in measured:
            rows, arrays = measured_rows(
                spec, learner.steps, task, learner.model, learner.optimizers, measure, memory
            )
            store.append(rows)
            if arrays:
                store.arrays(task.name, arrays)
        if earlier := looked_back(spec, index):
            now = {i: learner.score(stream.judged(i)) for i in earlier}
            store.append(kept_rows(spec, learner.steps, task, store.records(), now))
        if (index + 1) % spec.checkpoint_every == 0 or index + 1 == tasks:
            store.checkpoint({"task": index + 1, "learner": learner.state_dict()})
    store.finish(summarise(store.records()))
    if progress is not None:
        progress(1.0)
