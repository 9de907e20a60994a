"""Hare & Tortoise: a fast learner that is pulled back, from time to time, to its own slow average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import InputError
from supple.interventions.base import Intervention
from supple.interventions.handle import Handle, Optimizers
from supple.interventions.registry import register
from supple.interventions.schedule import Schedule


@register
@dataclass(frozen=True)
class HareTortoise(Intervention):
    """Train the hare; the tortoise follows as θ̄ <- μ θ̄ + (1 - μ) θ; every so often the hare <- tortoise.

    Lee et al. 2024 (ICML, "Slow and Steady Wins the Race"). Only the abstract could be read, so the
    exact schedule and which state the hare keeps are unverified: here the optimizer's state is left as
    it is, and buffers are not averaged. It targets generalisation under warm starts rather than
    trainability. ``handle.tortoise`` has the averaged parameters for evaluation.

    Args:
        every: steps between two returns (int, callable or "task"); unverified default.
        momentum: μ in [0, 1); unverified default.
    """

    every: Schedule = 1000
    momentum: float = 0.999

    mechanism: ClassVar[None] = None
    cost: ClassVar[str] = "low"
    evidence: ClassVar[str] = "unverified"
    source: ClassVar[str] = "Lee et al. 2024, Slow and Steady Wins the Race, ICML"

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise InputError("momentum must lie in [0, 1)", found=self.momentum, where="HareTortoise")

    def attach(self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None) -> HareTortoiseHandle:
        return HareTortoiseHandle(self, model, optimizer)


class HareTortoiseHandle(Handle):
    """Keeps the tortoise by parameter name."""

    intervention: HareTortoise

    def __init__(self, intervention: HareTortoise, model: nn.Module, optimizer: Optimizers) -> None:
        super().__init__(intervention, model, optimizer)
        self._named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._named:
            self.detach()
            raise InputError("the model has no trainable parameter", where="HareTortoise")
        self.tortoise: dict[str, Tensor] = {n: p.detach().clone() for n, p in self._named.items()}

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer) -> None:
        if optimizer is not self.optimizers[0]:
            return
        slow: list[Tensor] = list(self.tortoise.values())
        fast: list[Tensor] = [*self._named.values()]
        torch._foreach_lerp_(slow, fast, 1.0 - self.intervention.momentum)
        if self.due(self.intervention.every):
            for hare, tortoise in zip(fast, slow, strict=True):
                hare.copy_(tortoise)  # one by one: the foreach form knows no sharded parameters

    def _state(self) -> dict[str, Any]:
        return {"tortoise": {n: t.clone() for n, t in self.tortoise.items()}}

    def _load_state(self, state: dict[str, Any]) -> None:
        tortoise = state["tortoise"]
        if set(tortoise) != set(self.tortoise):
            raise InputError("the state holds other parameters", found=sorted(tortoise)[:5])
        for name, value in tortoise.items():
            self.tortoise[name].copy_(value)
