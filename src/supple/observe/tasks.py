"""Probes of earlier tasks, kept to measure forgetting."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import nn

from supple.observe.batch import as_classes, check_batch, main_output, run_loss
from supple.observe.copies import unwrap
from supple.observe.guard import guard
from supple.observe.outputs import accuracy
from supple.observe.probe import LossFn
from supple.records import MEASURED, Record
from supple.status import Status
from supple.topology.inputs import Forward, call
from supple.topology.taps import eager


class TaskProbes:
    """The current probe, and the named probes of finished tasks, at most ``keep`` of them.

    When there are more, those in the middle go: the oldest tell long memory, the newest the short one. What a
    task's own probe showed when it ended is kept with it: ``forgetting`` is told against that.
    """

    def __init__(self, probe: tuple[Any, Any], keep: int) -> None:
        self.current, self.keep = probe, max(0, int(keep))
        self.name = ""
        self.earlier: list[tuple[str, tuple[Any, Any]]] = []
        self.ends: dict[str, float] = {}  # name -> accuracy at its end; of the earlier tasks with classes

    def begin(self, name: str, probe: tuple[Any, Any] | None) -> None:
        """Start a task; the present probe moves to the earlier ones where a new one replaces it."""
        if probe is not None:
            if self.name:
                self.earlier.append((self.name, self.current))
            self.earlier = [x for x in self.earlier if x[0] != str(name)]  # a task that comes again
            while len(self.earlier) > self.keep:
                del self.earlier[(self.keep + 1) // 2]
            kept = {name for name, _ in self.earlier}
            self.ends = {name: value for name, value in self.ends.items() if name in kept}
            self.current = probe
        self.name = str(name)

    def evaluate(
        self, model: nn.Module, loss_fn: LossFn, forward: Forward | None, ends: bool = False
    ) -> list[Record]:
        """Rows ``task_loss``, ``task_accuracy`` and ``forgetting`` of all kept probes and the current one.

        ``ends``: the current task ends here, and its accuracy is what its forgetting will be told against.
        """
        if not self.name:
            return []
        rows: list[Record] = []
        model = unwrap(model)
        with guard(model, evaluate=True), eager(), torch.no_grad():
            for name, probe in (*self.earlier, (self.name, self.current)):
                batch = check_batch(probe)
                outputs = call(model, batch.inputs, forward)
                loss = run_loss(loss_fn, outputs, batch.targets).item()
                rows.append(_row("task_loss", loss, name, batch.samples))
                share = accuracy(as_classes(main_output(outputs), batch.targets))
                if share is None:
                    continue
                rows.append(_row("task_accuracy", share, name, batch.samples))
                if ends and name == self.name:
                    self.ends[name] = share
                elif name in self.ends and name != self.name:
                    rows.append(_row("forgetting", self.ends[name] - share, name, batch.samples))
        fallen = [row for row in rows if row.instrument == "forgetting"]
        if fallen:
            mean = fmean(row.value for row in fallen)
            rows.append(_row("forgetting", mean, "", sum(row.samples for row in fallen)))
        return rows

    def state_dict(self) -> dict[str, Any]:
        earlier = [list(x) for x in self.earlier]
        return {"name": self.name, "current": self.current, "earlier": earlier, "ends": dict(self.ends)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.name = str(state["name"])
        self.current = tuple(state["current"])
        self.earlier = [(str(name), tuple(probe)) for name, probe in state["earlier"]]
        self.ends = {str(name): float(value) for name, value in state["ends"].items()}


def _row(name: str, value: float, task: str, samples: int) -> Record:
    finite = value - value == 0
    status, note = (MEASURED, "") if finite else (str(Status.INVALID), "the value is not finite")
    return Record(name, value, variant=task, samples=samples, status=status, note=note)
