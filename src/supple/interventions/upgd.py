"""Utility-based perturbed gradient descent: useful weights are protected, useless ones perturbed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from supple.errors import InputError, OptimizerRuleError
from supple.fresh import generator
from supple.interventions.base import Intervention
from supple.interventions.handle import Handle, Optimizers
from supple.interventions.matrices import refuse_sharded
from supple.interventions.registry import register


@register
@dataclass(frozen=True)
class UPGD(Intervention):
    """θ <- θ - lr (g + σ ξ)(1 - Ū), with Ū = sigmoid(Û / max Û), U = EMA_β(-g θ), ξ ~ N(0, 1).

    Elsayed & Mahmood 2024 (ICLR), first-order global form. It rewrites the gradient in the step pre-hook,
    so it needs plain SGD (no momentum); weight decay is the optimizer's own. Where the authors' code and
    this differ: their maximum runs over the uncorrected average while the numerator is bias-corrected
    (their ratio is up to 1/(1 - β^t) larger early on), here both are corrected; a maximum that is not
    positive reverses their order, here the scale is |max|. Parameters without gradient are skipped.

    Args:
        decay: β, authors' grid 0.999 and 0.9999.
        noise: σ, authors' grid 0.01, 0.1, 1.
        seed: key of the noise; every replica draws the same.
    """

    decay: float = 0.999
    noise: float = 0.01
    seed: int = 0

    mechanism: ClassVar[None] = None
    cost: ClassVar[str] = "medium"
    source: ClassVar[str] = "Elsayed & Mahmood 2024, ICLR; code mohmdelsayed/upgd b75e90a"

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0 or self.noise < 0.0:
            raise InputError(
                "decay must lie in [0, 1) and noise must not be negative",
                found=f"{self.decay}, {self.noise}",
                where="UPGD",
            )

    def attach(self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None) -> UPGDHandle:
        return UPGDHandle(self, model, optimizer)


class UPGDHandle(Handle):
    """Keeps one utility average per parameter."""

    intervention: UPGD

    def __init__(self, intervention: UPGD, model: nn.Module, optimizer: Optimizers) -> None:
        refuse_sharded(model, intervention.name)
        super().__init__(intervention, model, optimizer)
        for opt in self.optimizers:
            if type(opt) is not SGD or any(group["momentum"] for group in opt.param_groups):
                self.detach()
                raise OptimizerRuleError(
                    "UPGD defines the whole update and needs plain SGD",
                    found=f"{type(opt).__name__}" + (" with momentum" if type(opt) is SGD else ""),
                    do="use torch.optim.SGD(params, lr) without momentum",
                )
        held = {id(p) for opt in self.optimizers for g in opt.param_groups for p in g["params"]}
        self._named = {n: p for n, p in model.named_parameters() if id(p) in held}
        self.utility: dict[str, Tensor] = {n: torch.zeros_like(p) for n, p in self._named.items()}
        self.updates: dict[str, int] = dict.fromkeys(self._named, 0)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer) -> None:
        own = {id(p) for g in optimizer.param_groups for p in g["params"]}
        live = {n: p for n, p in self._named.items() if id(p) in own and p.grad is not None}
        corrected: dict[str, Tensor] = {}
        for name, p in live.items():
            assert p.grad is not None
            self.utility[name].lerp_(-p.grad * p, 1 - self.intervention.decay)
            self.updates[name] += 1
            corrected[name] = self.utility[name] / (1 - self.intervention.decay ** self.updates[name])
        if not corrected:
            return
        top = torch.stack([u.max() for u in corrected.values()]).max().abs()
        for name, p in live.items():
            assert p.grad is not None
            gate = 1 - torch.sigmoid(corrected[name] / top.clamp_min(1e-30))
            g = generator(self.intervention.seed, self.step, name, p.device)
            noise = torch.randn(p.shape, generator=g, device=p.device, dtype=p.dtype)
            p.grad.add_(noise, alpha=self.intervention.noise).mul_(gate)

    def _state(self) -> dict[str, Any]:
        return {
            "utility": {n: u.clone() for n, u in self.utility.items()},
            "updates": dict(self.updates),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        if set(state["utility"]) != set(self.utility):
            raise InputError("the state holds other parameters", found=sorted(state["utility"])[:5])
        for name, value in state["utility"].items():
            self.utility[name].copy_(value)
        self.updates = {n: int(k) for n, k in state["updates"].items()}
