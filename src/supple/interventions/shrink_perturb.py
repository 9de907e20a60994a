"""Shrink and perturb: scale the parameters down and add noise, at a boundary or at every step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple import fresh
from supple.errors import AttachError, InputError
from supple.interventions.base import Intervention
from supple.interventions.handle import Handle, Optimizers, optimizer_list
from supple.interventions.penalty import Filter, held_parameters, is_vector_module, owners
from supple.interventions.registry import register
from supple.interventions.schedule import Schedule
from supple.status import Mechanism

Scaling = Literal["ash_adams", "nature", "upgd"]
_SCALINGS = ("ash_adams", "nature", "upgd")


@dataclass(frozen=True)
class _Target:
    """One parameter that is shrunk and perturbed."""

    name: str  # qualified, the key of its noise
    parameter: Tensor
    module: nn.Module


class ShrinkAndPerturbHandle(Handle):
    """Acts in the post-hook of the first optimizer, on the parameters of all of them."""

    def __init__(self, intervention: ShrinkAndPerturb, model: nn.Module, optimizer: Optimizers) -> None:
        self.targets = intervention.targets(model, optimizer_list(optimizer))
        super().__init__(intervention, model, optimizer)
        self.rule = intervention

    def _after_step(self, optimizer: Optimizer) -> None:
        if optimizer is self.optimizers[0] and self.due(self.rule.every):
            self.apply_()

    def _at_boundary(self) -> None:
        self.apply_()

    @torch.no_grad()
    def apply_(self) -> None:
        """Shrink and perturb now; the noise depends on (seed, step, parameter name) alone."""
        # read now: loading an optimizer's state replaces its groups
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        rate = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
        drawn = [(t, self._noise(t)) for t in self.targets if t.parameter.requires_grad]
        for target, noise in drawn:  # nothing is written before every draw has succeeded
            keep, add = self.rule.factors(rate[id(target.parameter)])
            target.parameter.mul_(keep).add_(noise, alpha=add)

    def _noise(self, target: _Target) -> Tensor:
        parameter = target.parameter
        source = fresh.generator(self.rule.seed, self.step, target.name, "cpu")
        if self.rule.scaling == "ash_adams":
            return fresh.draw(target.module, target.name.rpartition(".")[2], source, self.rule.initial)
        noise = torch.randn(parameter.shape, generator=source, dtype=torch.float32)
        return noise.to(device=parameter.device, dtype=parameter.dtype)


@register
@dataclass(frozen=True, kw_only=True)
class ShrinkAndPerturb(Intervention):
    """θ ← shrink · θ + perturb · ε, after a step on which ``every`` is due.

    Mechanism: weight growth and dead units. Cost: one draw of noise per parameter and action. Source: Ash and
    Adams, arXiv 1910.08475. Norm layers (modules with vectors only) are skipped: a fresh norm scale is 1, not
    noise. The optimizer's state is left alone; the published codes differ there and the paper does not say.

    Three scalings go by this name; ``scaling`` says which one this is:

    * ``"ash_adams"`` (default): ε is a **fresh draw of each layer's initialiser**; once per task.
    * ``"nature"``: ε ~ N(0, 1) for all weights and biases alike, not scaled by the learning rate, every step
      (Dohare et al. 2024, where the shrinking is the optimizer's L2: set ``shrink=1`` to do the same).
    * ``"upgd"``: the noise and the decay inside the learning rate, θ ← (1 − lr·(1 − shrink)) θ + lr·perturb·ε
      with ε ~ N(0, 1) (the UPGD repository's baseline), every step.

    Perturbing with the *stored initial* weights, as one library does, is none of these: it is L2-Init.

    Args:
        shrink: factor of the old parameters, in [0, 1]. 0.5 once per task held .76 online accuracy on
            permuted digits against .56 without; per step later work used 1 − 1e-3 … 1 − 1e-5.
        perturb: factor of the noise, ≥ 0. 0.5 for fresh draws; per step later work used 1e-2 (1e-4 on
            Continual ImageNet).
        every: ``"task"``, a number of steps, a callable step → bool, or ``"boundary"`` (see `LayerReset`).
        scaling: see above.
        initial: for ``"ash_adams"``, the law of a fresh draw (see `supple.fresh.draw`): "auto" is the
            default of PyTorch for the layer's class; name the law if the network was initialised otherwise.
        seed: of the noise, keyed with the step and the parameter's name: ranks and resumed runs agree.
        filter_fn: ``(module, parameter name) -> bool``; False leaves the parameter alone.

    >>> model = nn.Linear(4, 4)
    >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> handle = ShrinkAndPerturb(shrink=0.0, perturb=0.0).attach(model, opt)
    >>> handle.apply_(); model.weight.abs().sum().item()
    0.0
    """

    mechanism: ClassVar[Mechanism | None] = Mechanism.WEIGHT_GROWTH
    cost: ClassVar[str] = "low"
    level: ClassVar[int] = 1
    at_boundary: ClassVar[bool] = True
    source: ClassVar[str] = "Ash & Adams, arXiv 1910.08475"

    shrink: float = 0.5
    perturb: float = 0.5
    every: Schedule = "task"
    scaling: Scaling = "ash_adams"
    initial: str | Callable[..., object] = "auto"
    seed: int = 0
    filter_fn: Filter | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.shrink <= 1.0:
            raise InputError("ShrinkAndPerturb: shrink must lie in [0, 1]", found=self.shrink)
        if not (math.isfinite(self.perturb) and self.perturb >= 0):
            raise InputError("ShrinkAndPerturb: perturb must be finite and not negative", found=self.perturb)
        if self.scaling not in _SCALINGS:
            raise InputError(
                "unknown scaling", found=self.scaling, do=f"choose one of {', '.join(_SCALINGS)}"
            )

    def factors(self, lr: float) -> tuple[float, float]:
        """(factor of θ, factor of the noise) at this learning rate."""
        if self.scaling == "upgd":
            return 1.0 - lr * (1.0 - self.shrink), lr * self.perturb
        return self.shrink, self.perturb

    def targets(self, model: nn.Module, optimizers: list[Optimizer]) -> list[_Target]:
        """The parameters to act on; a layer whose fresh draw is unknown is refused here, before any write."""
        modules = owners(model)
        found: list[_Target] = []
        for held in held_parameters(model, optimizers):
            for name, parameter in held.items():
                module = modules[name]
                if is_vector_module(module) or not (self.filter_fn is None or self.filter_fn(module, name)):
                    continue
                self._check(module, name, parameter)
                found.append(_Target(name, parameter, module))
        if not found:
            raise AttachError("ShrinkAndPerturb covers no parameter of this model", do="check filter_fn")
        return found

    def _check(self, module: nn.Module, name: str, parameter: Tensor) -> None:
        if hasattr(parameter, "full_tensor"):
            raise AttachError(
                "ShrinkAndPerturb does not write sharded parameters", found="DTensor", where=name
            )
        reason = fresh.check_initial(module, self.initial) if self.scaling == "ash_adams" else None
        if reason is not None:
            raise AttachError(
                "ShrinkAndPerturb cannot draw this parameter afresh",
                found=reason,
                where=name,
                do="name the law with initial=, leave it out with filter_fn, or use scaling='nature'",
            )

    def attach(
        self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None
    ) -> ShrinkAndPerturbHandle:
        """Check every parameter, then hook; ``inputs`` is not needed."""
        return ShrinkAndPerturbHandle(self, model, optimizer)
