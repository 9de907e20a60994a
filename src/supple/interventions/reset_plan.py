"""What a reset writes, and what it tells: nothing is written before ``apply_``, and then all of it or nothing."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.errors import InputError
from supple.fresh import rule_for
from supple.interventions.compensation import compensation_of
from supple.interventions.slices import Slice


@dataclass(frozen=True)
class ResetEvent:
    """Units of one layer that were re-born after optimizer step ``step``.

    ``removed`` is the share of the consumers' weights that this set to zero: the largest
    ‖W_out[:, units]‖ / ‖W_out‖ of all consumers, a bound on the change of the function in weights; None where
    outgoing weights are not zeroed. ``change`` is what it did to the outputs, measured, where the handle was
    given a probe: ‖f_after(x) - f_before(x)‖ / ‖f_before(x)‖ of all resets of this step together.
    """

    step: int
    layer: str
    units: tuple[int, ...]
    outgoing: str
    removed: float | None = field(default=None, compare=False)
    change: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class LayerSkipped:
    """A layer that was left alone at a step on which it was due, and why."""

    step: int
    layer: str
    reason: str


@dataclass(frozen=True)
class Write:
    """What happens to ``target[where.at]``: ``values`` replaces it, or keep * target[where.at] + values does.

    ``optimizer`` is the owner whose state of the slice is cleared; None for buffers and where state is kept.
    """

    name: str
    target: Tensor
    where: Slice
    values: Tensor | float
    optimizer: Optimizer | None = None
    keep: Tensor | float = 0.0


def write_(target: Tensor, where: Slice, values: Tensor | float) -> None:
    """The only place where a reset changes a tensor of the model."""
    target[where.at] = values


def _restore(target: Tensor, at: tuple[Any, ...], values: Tensor) -> None:
    target[at] = values


@dataclass
class ResetPlan:
    """Everything that will be written, checked and drawn. ``str(plan)`` lists it; nothing is written yet."""

    events: list[ResetEvent]
    writes: list[Write] = field(repr=False)
    applied: bool = False

    def __str__(self) -> str:
        lines = [
            f"{e.layer}: {len(e.units)} unit(s) {list(e.units)}, outgoing {e.outgoing}" for e in self.events
        ]
        return "\n".join(lines) or "no unit is reset"

    @torch.no_grad()
    def apply_(self) -> list[ResetEvent]:
        """Write the plan, parameters and optimizer state together.

        An exception at any write puts every tensor back bit for bit and is raised again.
        """
        if self.applied:
            raise InputError("this plan was applied already", do="call plan_reset again")
        with ExitStack() as undo:
            for write in self.writes:
                now = write.target[write.where.at]
                undo.callback(_restore, write.target, write.where.at, now)
                mixed = isinstance(write.keep, Tensor) or write.keep != 0.0
                values = write.keep * now + write.values if mixed else write.values
                write_(write.target, write.where, values)
                if write.optimizer is not None:
                    self._clear(write, write.optimizer, undo)
            for write in self.writes:
                if write.optimizer is not None and rule_for(write.optimizer).ageing is not None:
                    compensation_of(write.optimizer).mark(write.optimizer, write.target, write.where)
            undo.pop_all()
        self.applied = True
        return self.events

    @staticmethod
    def _clear(write: Write, optimizer: Optimizer, undo: ExitStack) -> None:
        rule = rule_for(optimizer)
        for slot, at in rule.slices(optimizer, write.target, write.where.at):
            undo.callback(_restore, slot, at, slot[at])
        rule.clear_(optimizer, write.target, write.where.at)
