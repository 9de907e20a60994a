"""What a run writes down: the rows of a task, the rows of the instruments, the summary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from supple.bench.spec import RunSpec
from supple.bench.statistics import area, final_tenth
from supple.records import MEASURED, Record, Records
from supple.status import Status
from supple.streams import Task

if TYPE_CHECKING:
    from supple.bench.learner import TaskResult


@dataclass(frozen=True)
class Scene:
    """What an instrument gets to see at the end of a task. It must leave all of it as it found it.

    ``memory`` is kept from scene to scene within one process, for what is costly and never changes.
    """

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    batch: tuple[Any, Tensor]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    instruments: str
    task: int
    seed: int
    memory: dict[str, Any] = field(default_factory=dict)


LOSS = "online_loss"
#: looks at a scene and returns records and arrays
Measure: TypeAlias = Callable[[Scene], tuple[Iterable[Record], Mapping[str, Tensor]]]


def observe_scene(scene: Scene) -> tuple[Iterable[Record], Mapping[str, Tensor]]:
    """The default instrument: `supple.observe.observe`. The structure is traced once a process."""
    from supple.observe import observe

    seen = observe(
        scene.model,
        scene.batch,
        scene.loss_fn,
        optimizer=list(scene.optimizers),
        instruments=scene.instruments,
        topology=scene.memory.get("topology"),
        seed=scene.seed,
    )
    scene.memory["topology"] = seen.topology
    return seen.records, seen.arrays


def run_name(spec: RunSpec) -> str:
    """How records name their run: ``method/seed-n``."""
    return f"{spec.method}/seed-{spec.seed}"


def task_rows(spec: RunSpec, steps: int, task: Task, result: TaskResult, end: float) -> list[Record]:
    """``online_accuracy``, ``end_accuracy`` (or the protocol's metric) and ``online_loss`` of one task."""
    metric = spec.protocol.metric
    where: dict[str, Any] = {"run": run_name(spec), "step": steps, "task": task.name}
    note = f"{result.nonfinite} answers were not finite and count as wrong" if result.nonfinite else ""
    bad = not math.isfinite(result.loss)
    return [
        Record(f"online_{metric}", result.online, samples=result.samples, note=note, **where),
        Record(f"end_{metric}", end, samples=task.judged_samples, **where),
        Record(
            LOSS,
            result.loss,
            samples=result.samples,
            status=Status.INVALID.value if bad else MEASURED,
            note="the training loss is not finite" if bad else "",
            **where,
        ),
        *(_extra(name, value, where) for name, value in result.extra.items()),
    ]


def _extra(name: str, value: float, where: Mapping[str, Any]) -> Record:
    """A further row of a task; what is not finite is no number."""
    if math.isfinite(value):
        return Record(name, value, **where)
    return Record(name, math.nan, status=Status.INVALID.value, note="not finite", **where)


def measured_rows(
    spec: RunSpec,
    steps: int,
    task: Task,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    measure: Measure,
    memory: dict[str, Any],
) -> tuple[list[Record], Mapping[str, Tensor]]:
    """What the instruments say at the end of a task, and the arrays to keep.

    Arrays are kept at the first and last measured task alone; elsewhere a record refers to none.
    """
    measured = spec.measured()
    edge = task.index in (measured[0], measured[-1])
    scene = Scene(
        model=model,
        optimizers=optimizers,
        batch=spec.protocol.presenter(task, "probe")(*task.probe(spec.probe)),
        loss_fn=spec.protocol.loss,
        instruments=spec.edge_instruments if edge else spec.instruments,
        task=task.index,
        seed=spec.seed,
        memory=memory,
    )
    records, arrays = measure(scene)
    where: dict[str, Any] = {"run": run_name(spec), "step": steps, "task": task.name}
    rows = [
        dataclasses.replace(r, **where, array=f"{task.name}:{r.array}" if edge and r.array else "")
        for r in records
    ]
    return rows, arrays if edge else {}


def summarise(records: Records) -> dict[str, float]:
    """The figures of one run that comparisons start from."""
    metric = metric_of(records)
    online, end = curve(records, "online"), curve(records, "end")
    return {
        "tasks": len(online),
        f"online_{metric}_first_tenth": final_tenth(online[::-1]),
        f"online_{metric}_last_tenth": final_tenth(online),
        f"online_{metric}_area": area(online),
        f"online_{metric}_peak": max(online),
        f"end_{metric}_last_tenth": final_tenth(end),
    }


def diverged(records: Records) -> bool:
    """Whether a training loss of the run was not finite: its answers then count as wrong."""
    return any(r.instrument == LOSS and r.status != MEASURED for r in records)


def metric_of(records: Records) -> str:
    """What a run counts: "accuracy", or the other metric of its protocol."""
    found = next(
        (r.instrument for r in records if r.instrument.startswith("online_") and r.instrument != LOSS), ""
    )
    return found.removeprefix("online_") or "accuracy"


def curve(records: Records, when: str) -> list[float]:
    """The metric over tasks; ``when`` is "online" (each batch before it is learned) or "end" (of each task)."""
    return records.select(instrument=f"{when}_{metric_of(records)}").values()
