"""What a fresh slice of an optimizer's state is: one rule per class, or a refusal by name.

After a reset a slice moves as under a fresh optimizer of the same class with the present learning rate, and
every other element moves bit for bit as without the reset. Two classes cannot give the second half, because
their update of one element reads the whole matrix: `Adafactor`, also that of transformers, and `Muon` (see their
rules). `LBFGS` keeps one history of the whole network and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.errors import InputError, OptimizerRuleError
from supple.fresh.ageing import ADAM, ADAMAX, NADAM, RADAM, Ageing

Index: TypeAlias = tuple[Any, ...]


def group_of(optimizer: Optimizer, param: Tensor) -> dict[str, Any]:
    """The parameter group that holds this parameter; empty where none does."""
    return next((g for g in optimizer.param_groups if any(p is param for p in g["params"])), {})


@dataclass(frozen=True)
class OptimizerRule:
    """Which state tensors belong to a parameter element by element, and what they hold in a fresh optimizer.

    ``slots`` maps the name of a state tensor of the parameter's own shape to its fresh value: a number, or the
    name of a setting of the parameter group (``"lr"``). A state entry of another shape that is not in
    ``shared`` makes the rule refuse: it would be a guess. ``ageing`` belongs to optimizers whose one step
    count per tensor is too old for a fresh row: `ADAM`, `ADAMAX`, `NADAM`, `RADAM` or a class of your own; None
    where the update does not depend on the count, or only as a schedule like that of the learning rate.
    Subclass and override `slices` and `clear_` for anything that one value per slot cannot say.
    """

    slots: Mapping[str, float | str] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    ageing: Ageing | None = None

    def refusal(self, optimizer: Optimizer, param: Tensor) -> str | None:
        """Why the state of this parameter cannot be cleared by slices, or None."""
        for name, value in optimizer.state.get(param, {}).items():
            if name in self.shared or value is None:
                continue
            if name not in self.slots:
                return f"state entry {name!r} is not part of the rule"
            if not isinstance(value, Tensor) or value.shape != param.shape:
                return f"state entry {name!r} does not have the shape of the parameter"
        if group_of(optimizer, param).get("differentiable"):
            return "differentiable=True keeps the state in a graph"
        return None

    def slices(self, optimizer: Optimizer, param: Tensor, index: Index) -> list[tuple[Tensor, Index]]:
        """The parts of state tensors that `clear_` writes; empty before the first step."""
        state = optimizer.state.get(param, {})
        return [(state[name], index) for name in self.slots if state.get(name) is not None]

    @torch.no_grad()
    def clear_(self, optimizer: Optimizer, param: Tensor, index: Index) -> None:
        """Set ``state[slot][index]`` to the value of a fresh optimizer; the rest is not touched."""
        state = optimizer.state.get(param, {})
        for name, value in self.slots.items():
            slot = state.get(name)
            if slot is not None:
                slot[index] = group_of(optimizer, param)[value] if isinstance(value, str) else value


class _SGD(OptimizerRule):
    """A fresh momentum buffer starts at the gradient; a zeroed one reaches that only without dampening."""

    def refusal(self, optimizer: Optimizer, param: Tensor) -> str | None:
        group = group_of(optimizer, param)
        if group.get("dampening") and group.get("momentum"):
            return "with dampening, SGD treats the first gradient of a tensor unlike all others"
        return super().refusal(optimizer, param)


class _ASGD(OptimizerRule):
    """The average of a fresh row starts at the row; ``eta`` and ``mu`` are schedules and go on."""

    @torch.no_grad()
    def clear_(self, optimizer: Optimizer, param: Tensor, index: Index) -> None:
        average = optimizer.state.get(param, {}).get("ax")
        if average is not None:
            average[index] = param[index]


@dataclass(frozen=True)
class _Adafactor(OptimizerRule):
    """Second moments of a fresh row or column: the mean of the others, so that it takes a typical step.

    Zero, the value of a fresh optimizer, would make its step so large that the clipping of the whole
    update slows all others. The others keep their direction, but not their length to the last bit: the update
    is scaled by the size of the parameter, of the update and of the mean row, which a reset changes. Of a matrix a
    fresh row gets its own row factor and a fresh column its own column factor; the factor of the other side belongs to
    all units and stays. ``slots`` is the first moment of those that keep one (no bias correction: zero is fresh).
    """

    rows: str = "row_var"
    columns: str = "col_var"
    vector: str = "variance"

    def refusal(self, optimizer: Optimizer, param: Tensor) -> str | None:
        own = {*self.shared, *self.slots, self.rows, self.columns, self.vector}
        unknown = set(optimizer.state.get(param, {})) - own
        return f"state entry {min(unknown)!r} is not part of the rule" if unknown else None

    def slices(self, optimizer: Optimizer, param: Tensor, index: Index) -> list[tuple[Tensor, Index]]:
        return super().slices(optimizer, param, index) + self._moments(optimizer, param, index)

    def _moments(self, optimizer: Optimizer, param: Tensor, index: Index) -> list[tuple[Tensor, Index]]:
        """Second moments that have the axes of the slice; a view of length 1 stands for the axis a factor lacks."""
        state = optimizer.state.get(param, {})
        axes = [d for d, i in enumerate(index) if isinstance(i, Tensor)]
        found = []
        for name, lacks in ((self.rows, -1), (self.columns, -2), (self.vector, -1)):
            slot = state.get(name)
            if slot is None:
                continue
            slot = slot if slot.dim() == param.dim() else slot.unsqueeze(lacks)
            if all(slot.shape[d] == param.shape[d] for d in axes):
                found.append((slot, index))
        return found

    @torch.no_grad()
    def clear_(self, optimizer: Optimizer, param: Tensor, index: Index) -> None:
        super().clear_(optimizer, param, index)
        axis = len(index) - 1  # cells: the second of their two axes
        for slot, at in self._moments(optimizer, param, index):
            others = torch.ones_like(slot)
            others[at] = 0.0
            count = others.sum(axis, keepdim=True)
            mean = (slot * others).sum(axis, keepdim=True) / count.clamp(min=1.0)
            slot[at] = mean.expand_as(slot)[at]


_ADAM = OptimizerRule(
    {"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0}, shared=("step",), ageing=ADAM
)
_MOMENTS: dict[str, float | str] = {"exp_avg": 0.0, "exp_avg_sq": 0.0}

#: exact classes only: a subclass may keep its state in another way
_RULES: dict[type[Optimizer], OptimizerRule] = {
    torch.optim.SGD: _SGD({"momentum_buffer": 0.0}),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.SparseAdam: OptimizerRule(_MOMENTS, ("step",), ADAM),
    torch.optim.Adamax: OptimizerRule({"exp_avg": 0.0, "exp_inf": 0.0}, ("step",), ADAMAX),
    torch.optim.NAdam: OptimizerRule(_MOMENTS, ("step", "mu_product"), NADAM),
    torch.optim.RAdam: OptimizerRule(_MOMENTS, ("step",), RADAM),
    # lr_decay of Adagrad is a schedule: it goes on
    torch.optim.Adagrad: OptimizerRule({"sum": "initial_accumulator_value"}, ("step",)),
    torch.optim.Adadelta: OptimizerRule({"square_avg": 0.0, "acc_delta": 0.0}, ("step",)),
    # without bias correction: the first update of any fresh RMSprop is lr / sqrt(1 - alpha)
    torch.optim.RMSprop: OptimizerRule(
        {"square_avg": 0.0, "momentum_buffer": 0.0, "grad_avg": 0.0}, ("step",)
    ),
    torch.optim.Rprop: OptimizerRule({"prev": 0.0, "step_size": "lr"}, ("step",)),
    torch.optim.ASGD: _ASGD({"ax": 0.0}, ("step", "eta", "mu")),
    torch.optim.Adafactor: _Adafactor({}, ("step",)),
    # orthogonalising the momentum of a matrix mixes its rows: the others feel the reset
    torch.optim.Muon: OptimizerRule({"momentum_buffer": 0.0}),
}
#: classes of packages that are not imported for it, by module and name
_ELSEWHERE: dict[str, OptimizerRule] = {
    # optim="adafactor" of the Trainer; RMS is the size of the parameter, taken anew at each step
    "transformers.optimization.Adafactor": _Adafactor(
        {"exp_avg": 0.0}, ("step", "RMS"), None, "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"
    ),
}
_REFUSED: dict[type[Optimizer], str] = {
    torch.optim.LBFGS: "it keeps one history of the whole network, of which no slice is fresh"
}


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _known_rule(cls: type[Optimizer]) -> OptimizerRule | None:
    return _RULES.get(cls) or _ELSEWHERE.get(_full_name(cls))


def register_rule(optimizer_class: type[Optimizer], rule: OptimizerRule) -> None:
    """Teach Supple another optimizer class. A class that has a rule already is refused.

    >>> class MySGD(torch.optim.SGD): ...
    >>> register_rule(MySGD, OptimizerRule(slots={"momentum_buffer": 0.0}))
    >>> rule_for(MySGD([torch.zeros(1, requires_grad=True)], lr=0.1)).slots
    {'momentum_buffer': 0.0}
    """
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        raise InputError("a rule belongs to a torch.optim.Optimizer class", found=optimizer_class)
    known = _known_rule(optimizer_class)
    if known is not None and known != rule:
        raise InputError(f"{optimizer_class.__name__} has a rule already", found=known)
    _RULES[optimizer_class] = rule


def rule_for(optimizer: Optimizer) -> OptimizerRule:
    """The rule of this optimizer's exact class, or `OptimizerRuleError` by class name.

    >>> sorted(rule_for(torch.optim.Adam([torch.zeros(1, requires_grad=True)])).slots)
    ['exp_avg', 'exp_avg_sq', 'max_exp_avg_sq']
    """
    cls = type(optimizer)
    rule = _known_rule(cls)
    if rule is None:
        reason = _REFUSED.get(cls)
        raise OptimizerRuleError(
            "the state of this optimizer cannot be cleared for single units"
            if reason
            else "no rule says what a fresh slice of this optimizer's state is",
            found=_full_name(cls) + (f": {reason}" if reason else ""),
            do="use another optimizer with resets"
            if reason
            else f"supple.fresh.register_rule({cls.__name__}, OptimizerRule(slots={{...}})); "
            f"known: {', '.join(sorted([c.__name__ for c in _RULES] + list(_ELSEWHERE)))}; "
            "for a wrapper pass the inner optimizer",
        )
    return rule
