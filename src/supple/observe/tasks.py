"""Probes of earlier tasks, kept to measure forgetting."""

from __future__ import annotations

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

    When there are more, those in the middle go: the oldest tell long memory, the newest the short one.
    """

    def __init__(self, probe: tuple[Any, Any], keep: int) -> None:
        self.current, self.keep = probe, max(0, int(keep))
        self.name = ""
        self.earlier: list[tuple[str, tuple[Any, Any]]] = []

    def begin(self, name: str, probe: tuple[Any, Any] | None) -> None:
        """Start a task; the present probe moves to the earlier ones where a new one replaces it."""
        if probe is not None:
            if self.name:
                self.earlier.append((self.name, self.current))
            while len(self.earlier) > self.keep:
                del self.earlier[(self.keep + 1) // 2]
            self.current = probe
        self.name = str(name)

    def evaluate(self, model: nn.Module, loss_fn: LossFn, forward: Forward | None) -> list[Record]:
        """Rows ``task_loss`` and ``task_accuracy`` of all kept probes and the current one."""
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
                if share is not None:
                    rows.append(_row("task_accuracy", share, name, batch.samples))
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name, "current": self.current, "earlier": [list(x) for x in self.earlier]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.name = str(state["name"])
        self.current = tuple(state["current"])
        self.earlier = [(str(name), tuple(probe)) for name, probe in state["earlier"]]


def _row(name: str, value: float, task: str, samples: int) -> Record:
    finite = value - value == 0
    status, note = (MEASURED, "") if finite else (str(Status.INVALID), "the value is not finite")
    return Record(name, value, variant=task, samples=samples, status=status, note=note)
