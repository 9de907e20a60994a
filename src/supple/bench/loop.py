"""The loop engine: one run from its key to its sealed folder, through any number of kills."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from supple.bench.learner import Learner, TaskResult
from supple.bench.spec import RunSpec
from supple.bench.statistics import area, final_tenth
from supple.records import MEASURED, Record, Records
from supple.status import Status
from supple.store import Run
from supple.streams import Task


@dataclass(frozen=True)
class Scene:
    """What an instrument gets to see at the end of a task. It must leave all of it as it found it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: tuple[Tensor, Tensor]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    instruments: str
    task: int
    seed: int


#: looks at a scene and returns records and arrays
Measure: TypeAlias = Callable[[Scene], tuple[Iterable[Record], Mapping[str, Tensor]]]
#: called with the share of the run that is done
Progress: TypeAlias = Callable[[float], None]


def observe_scene(scene: Scene) -> tuple[Iterable[Record], Mapping[str, Tensor]]:
    """The default instrument: `supple.observe.observe`."""
    from supple.observe import observe

    seen = observe(
        scene.model,
        scene.batch,
        scene.loss_fn,
        optimizer=scene.optimizer,
        instruments=scene.instruments,
        seed=scene.seed,
    )
    return seen.records, seen.arrays


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

    Writes, for every task, ``online_accuracy``, ``end_accuracy`` and ``loss``, and what ``measure`` says at
    the measured tasks. The last checkpoint holds the worn network.

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
    learner, tasks = Learner(spec), spec.protocol.tasks
    state = store.resume()
    first = 0
    if state is not None:
        first = state["task"]
        learner.load_state_dict(state["learner"])
    stream, measured = spec.protocol.stream(spec.seed), spec.measured()
    for index in range(first, tasks):
        if progress is not None:
            progress(index / tasks)
        task = stream.task(index)
        learner.start(index)
        store.append(_rows(spec, learner, task, learner.learn(task)))
        if index in measured:
            _measure(spec, store, learner, task, measure, edge=index in (measured[0], measured[-1]))
        if (index + 1) % spec.checkpoint_every == 0 or index + 1 == tasks:
            store.checkpoint({"task": index + 1, "learner": learner.state_dict()})
    store.finish(summarise(store.records()))
    if progress is not None:
        progress(1.0)


def _rows(spec: RunSpec, learner: Learner, task: Task, result: TaskResult) -> list[Record]:
    where = {"run": run_name(spec), "step": learner.steps, "task": task.name}
    note = f"{result.nonfinite} answers were not finite and count as wrong" if result.nonfinite else ""
    bad = not math.isfinite(result.loss)
    return [
        Record("online_accuracy", result.online_accuracy, samples=result.samples, note=note, **where),
        Record("end_accuracy", learner.accuracy(task), samples=len(task), **where),
        Record(
            "loss",
            result.loss,
            samples=result.samples,
            status=Status.INVALID.value if bad else MEASURED,
            note="the training loss is not finite" if bad else "",
            **where,
        ),
    ]


def _measure(
    spec: RunSpec, store: Run, learner: Learner, task: Task, measure: Measure, *, edge: bool
) -> None:
    scene = Scene(
        model=learner.model,
        optimizer=learner.optimizer,
        batch=task.probe(spec.probe),
        loss_fn=spec.protocol.loss,
        instruments=spec.edge_instruments if edge else spec.instruments,
        task=task.index,
        seed=spec.seed,
    )
    records, arrays = measure(scene)
    # arrays are kept at the edges alone; elsewhere a reference would point at nothing
    where: dict[str, Any] = {"run": run_name(spec), "step": learner.steps, "task": task.name}
    store.append(
        dataclasses.replace(r, **where, array=f"{task.name}:{r.array}" if edge and r.array else "")
        for r in records
    )
    if edge and arrays:
        store.arrays(task.name, arrays)


def run_name(spec: RunSpec) -> str:
    """How records name their run: ``method/seed-n``."""
    return f"{spec.method}/seed-{spec.seed}"


def summarise(records: Records) -> dict[str, float]:
    """The figures of one run that comparisons start from."""
    online = records.select(instrument="online_accuracy").values()
    end = records.select(instrument="end_accuracy").values()
    return {
        "tasks": len(online),
        "online_accuracy_first_tenth": final_tenth(online[::-1]),
        "online_accuracy_last_tenth": final_tenth(online),
        "online_accuracy_area": area(online),
        "online_accuracy_peak": max(online),
        "end_accuracy_last_tenth": final_tenth(end),
    }
