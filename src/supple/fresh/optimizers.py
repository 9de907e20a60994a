"""What a fresh slice of an optimizer's state is: one rule per class, or a refusal by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.errors import InputError, OptimizerRuleError

Index: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class OptimizerRule:
    """Which state tensors belong to a parameter element by element, and what they hold in a fresh optimizer.

    ``slots`` maps the name of a state tensor of the parameter's own shape to its fresh value. A state entry
    of another shape that is not in ``shared`` makes the rule refuse: it would be a guess.
    ``bias_corrected`` marks optimizers of the Adam family, whose one step count per tensor is too old
    for a fresh row: their slices need `supple.interventions.compensation` after the reset.
    Subclass and override `clear_` for anything that one number per slot cannot say.
    """

    slots: Mapping[str, float] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    bias_corrected: bool = False

    def refusal(self, optimizer: Optimizer, param: Tensor) -> str | None:
        """Why the state of this parameter cannot be cleared by slices, or None."""
        for name, value in optimizer.state.get(param, {}).items():
            if name in self.shared or value is None:
                continue
            if name not in self.slots:
                return f"state entry {name!r} is not part of the rule"
            if not isinstance(value, Tensor) or value.shape != param.shape:
                return f"state entry {name!r} does not have the shape of the parameter"
        for group in optimizer.param_groups:
            if group.get("differentiable") and any(p is param for p in group["params"]):
                return "differentiable=True keeps the state in a graph"
        return None

    def tensors(self, optimizer: Optimizer, param: Tensor) -> list[Tensor]:
        """The state tensors that `clear_` writes; empty before the first step."""
        state = optimizer.state.get(param, {})
        return [state[name] for name in self.slots if state.get(name) is not None]

    @torch.no_grad()
    def clear_(self, optimizer: Optimizer, param: Tensor, index: Index) -> None:
        """Set ``state[slot][index]`` to the value of a fresh optimizer; the rest is not touched."""
        state = optimizer.state.get(param, {})
        for name, value in self.slots.items():
            slot = state.get(name)
            if slot is not None:
                slot[index] = value


_ADAM = OptimizerRule(
    slots={"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0}, shared=("step",), bias_corrected=True
)

#: exact classes only: a subclass may keep its state in another way
_RULES: dict[type[Optimizer], OptimizerRule] = {
    # With dampening d a fresh SGD starts at the gradient, a zeroed slice at (1 - d) times it.
    torch.optim.SGD: OptimizerRule(slots={"momentum_buffer": 0.0}),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
}


def register_rule(optimizer_class: type[Optimizer], rule: OptimizerRule) -> None:
    """Teach Supple another optimizer class. A class that has a rule already is refused.

    >>> class MySGD(torch.optim.SGD): ...
    >>> register_rule(MySGD, OptimizerRule(slots={"momentum_buffer": 0.0}))
    >>> rule_for(MySGD([torch.zeros(1, requires_grad=True)], lr=0.1)).bias_corrected
    False
    """
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        raise InputError("a rule belongs to a torch.optim.Optimizer class", found=optimizer_class)
    known = _RULES.get(optimizer_class)
    if known is not None and known != rule:
        raise InputError(f"{optimizer_class.__name__} has a rule already", found=known)
    _RULES[optimizer_class] = rule


def rule_for(optimizer: Optimizer) -> OptimizerRule:
    """The rule of this optimizer's exact class, or `OptimizerRuleError` by class name.

    >>> rule_for(torch.optim.Adam([torch.zeros(1, requires_grad=True)])).bias_corrected
    True
    """
    rule = _RULES.get(type(optimizer))
    if rule is None:
        cls = type(optimizer)
        raise OptimizerRuleError(
            "no rule says what a fresh slice of this optimizer's state is",
            found=f"{cls.__module__}.{cls.__qualname__}",
            do=f"supple.fresh.register_rule({cls.__name__}, OptimizerRule(slots={{...}})); "
            f"known: {', '.join(sorted(c.__name__ for c in _RULES))}; for a wrapper pass the inner optimizer",
        )
    return rule
