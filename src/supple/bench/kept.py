"""What a network keeps of earlier tasks: the rows of a look back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from supple.bench.rows import metric_of, run_name
from supple.bench.spec import RunSpec
from supple.bench.statistics import area_of_forgetting
from supple.records import Record, Records
from supple.streams import Task

#: earlier tasks that are looked back on, at most
LOOK_BACK = 20


def looked_back(spec: RunSpec, index: int) -> list[int]:
    """Earlier tasks that are asked for once more after task ``index``: all, or evenly spread ones with the first.

    After the last task and after every measured one; none of an i.i.d. control, which has no tasks, and none of
    agents, whose tasks are environments.
    """
    last = index + 1 == spec.protocol.tasks
    if not (last or index in spec.measured()) or spec.protocol.iid or not spec.protocol.supervised:
        return []
    if index <= LOOK_BACK:
        return list(range(index))
    return [round(i * (index - 1) / (LOOK_BACK - 1)) for i in range(LOOK_BACK)]


def kept_rows(
    spec: RunSpec, steps: int, task: Task, so_far: Records, now: Mapping[int, float]
) -> list[Record]:
    """``task_<metric>`` of each task looked back on, how much of it is lost (``forgetting``), and the mean of that.

    The names are those of `supple.Monitor`; ``variant`` is the earlier task, none for the mean.

    Args:
        task: the task that has just ended.
        so_far: the records of this run, whose end values forgetting is told against.
        now: earlier task -> the metric now, of those in `looked_back`.
    """
    if not now:
        return []
    ends = so_far.select(instrument=f"end_{spec.protocol.metric}").values()
    where: dict[str, Any] = {"run": run_name(spec), "step": steps, "task": task.name}
    rows = []
    for i, value in now.items():
        rows.append(Record(f"task_{spec.protocol.metric}", value, variant=f"task-{i}", **where))
        rows.append(Record("forgetting", ends[i] - value, variant=f"task-{i}", **where))
    mean = area_of_forgetting([ends[i] for i in now], list(now.values()))
    return [*rows, Record("forgetting", mean, samples=len(now), **where)]


def stability(records: Records) -> float:
    """Mean of the metric on the earlier tasks, after the last task; NaN where nobody looked back.

    >>> stability(Records())
    nan
    """
    name = f"task_{metric_of(records)}"
    rows = [r for r in records if r.instrument == name and r.variant]
    return fmean(r.value for r in rows if r.task == rows[-1].task) if rows else math.nan


def forgotten(records: Records) -> float:
    """The area of forgetting: mean over all looks back of what earlier tasks lost since they ended; NaN without one.

    >>> forgotten(Records())
    nan
    """
    looks: Sequence[float] = [r.value for r in records if r.instrument == "forgetting" and not r.variant]
    return fmean(looks) if looks else math.nan
