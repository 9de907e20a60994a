"""Churn of the run itself: the probe's outputs now against those some steps ago, and against the first network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.observe.batch import main_output
from supple.observe.change import churn_rows
from supple.observe.copies import unwrap
from supple.observe.guard import guard
from supple.records import Record
from supple.status import Status
from supple.topology.inputs import Forward, call
from supple.topology.taps import eager


class ChurnWatch:
    """Outputs on the probe at the steps that a later look will compare with, and nothing longer.

    ``lag=k``: the network before the last k steps against the network now, the steps as they were made, with
    whatever interventions did between them. ``initial``: the network at attachment against the network now.
    A new probe begins anew: rows of a lag that reaches behind it are left out until it has passed.
    """

    def __init__(self, model: nn.Module, forward: Forward | None, lags: Sequence[int]) -> None:
        wrong = [k for k in lags if not isinstance(k, int) or isinstance(k, bool) or k < 1]
        if wrong:
            raise InputError("lags are numbers of optimizer steps >= 1", found=repr(wrong[0]))
        self._model, self._forward = unwrap(model), forward
        self.lags = tuple(sorted(set(lags)))
        self._outputs: dict[int, Tensor] = {}  # completed steps -> outputs
        self._first: Tensor | None = None

    def keep(self, step: int, inputs: Any, due: Callable[[int], bool], outputs: Any = None) -> None:
        """Keep the outputs after ``step`` completed steps where a look to come needs them.

        ``outputs`` are those of a look that was just taken; without them the network is run on the probe.
        """
        if any(due(step + k) for k in self.lags):
            seen = main_output(outputs)
            found = self.outputs_of(self._model, inputs) if seen is None else seen.detach().clone()
            if found is not None:
                self._outputs[step] = found

    def rows(
        self, step: int, outputs: Any, targets: Any, initial: Callable[[], Tensor | None]
    ) -> list[Record]:
        """Rows of a look after ``step`` completed steps, with the outputs that it saw."""
        now = main_output(outputs)
        samples = 0 if now is None or now.dim() == 0 else len(now)
        pairs = [(f",lag={k}", self._outputs.get(step - k)) for k in self.lags]
        if step > 0:
            if self._first is None:
                self._first = initial()
            pairs.append((",initial", self._first))
        rows: list[Record] = []
        for suffix, old in pairs:
            if old is None:
                continue
            if now is None or now.shape != old.shape or now.dim() < 2:
                reason = "the outputs have no axis of samples and of classes, or changed their shape"
                rows.append(_unmeasured(suffix, reason))
            else:
                rows += churn_rows(old.to(now.device), now.detach(), targets, samples, suffix)
        oldest = step + 1 - max(self.lags, default=0)
        self._outputs = {s: x for s, x in self._outputs.items() if s >= oldest}
        return rows

    def restart(self) -> None:
        """Forget all outputs: the probe is another one."""
        self._outputs, self._first = {}, None

    def outputs_of(self, model: nn.Module, inputs: Any) -> Tensor | None:
        """The main output in eval mode; nothing of the model's state changes."""
        with guard(model, evaluate=True), eager(), torch.no_grad():
            found = main_output(call(model, inputs, self._forward))
        return None if found is None else found.detach().clone()

    def state_dict(self) -> dict[str, Any]:
        return {"outputs": {str(step): x for step, x in self._outputs.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._outputs, self._first = {int(step): x for step, x in state["outputs"].items()}, None


def _unmeasured(suffix: str, reason: str) -> Record:
    row = Record("churn", float("nan"), variant=f"mse{suffix}")
    return dataclasses.replace(row, status=str(Status.NOT_MEASURED), note=reason)
