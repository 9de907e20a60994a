"""TRAC: one scale, tuned without parameters, on how far the optimizer has moved from where it started."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import InputError, SuppleError
from supple.interventions.base import Intervention
from supple.interventions.handle import Handle, Optimizers, optimizer_list
from supple.interventions.matrices import refuse_sharded
from supple.interventions.penalty import held_parameters
from supple.interventions.registry import register

_TERMS = 900  # of the series of erfi: exact to rounding up to |x| = 26, beyond which it leaves float64


def erfi(x: Tensor) -> Tensor:
    """Imaginary error function, (2/√π) Σ x^(2n+1) / (n! (2n+1)), all terms of one sign; float64, Inf beyond 26.

    >>> round(erfi(torch.tensor([1.0], dtype=torch.float64)).item(), 10)
    1.6504257588
    """
    n = torch.arange(_TERMS, dtype=torch.float64, device=x.device)
    logs = (2 * n + 1) * x.double().abs()[..., None].log() - torch.lgamma(n + 1) - (2 * n + 1).log()
    return x.sign() * logs.exp().sum(-1) * (2 / math.sqrt(math.pi))


@register
@dataclass(frozen=True)
class TRAC(Intervention):
    """θ ← θ₀ + S (Δ + u): u the step of the optimizer, Δ = (θ − θ₀) / (S + eps), S = max(Σ_β s_β, 0).

    Each s_β is a discounted tuner of one dimension: h = ⟨g, Δ⟩, v ← β² v + h², σ ← β σ − h,
    s_β = start / erfi(1/√2) · erfi(σ / (√2 √v + eps)). Where moving away from θ₀ pays, S grows and the optimizer has
    its way; where it does not, the network is drawn back to where it started. Mechanism: none of its own; weight
    growth. Cost: one copy of θ₀, one of θ and one inner product per step. Source: Muppidi, Zhang, Yang, "Fast TRAC",
    NeurIPS 2024, arXiv 2405.16642; the form is that of the authors' package.

    Each optimizer has a tuner of its own; θ₀ are the parameters at attach. Where this differs from the package: the
    tuner is computed in float64 and erfi by its series instead of an approximation in float32; parameters without a
    gradient stay out of h and are not moved, as there. With S as small as ``eps`` at first, Δ is about half of what
    the name says; that is the published behaviour and kept. Its ``step`` writes a text file each time; this does
    not.

    Args:
        betas: discounts of the tuners.
        start: their initial scale (``s_prev`` in the package). eps: as above.

    Raises:
        SuppleError: a scale that is not finite; the optimizer's own step stands then.

    >>> model = nn.Linear(3, 1)
    >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> handle = TRAC().attach(model, opt)
    >>> model(torch.ones(4, 3)).square().mean().backward(); opt.step()
    >>> 0 < handle.scales()[0] < 1e-6
    True
    """

    betas: tuple[float, ...] = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
    start: float = 1e-8
    eps: float = 1e-8

    mechanism: ClassVar[None] = None
    cost: ClassVar[str] = "medium"
    source: ClassVar[str] = "Muppidi, Zhang, Yang, NeurIPS 2024, arXiv 2405.16642"

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # a list from a file
        if not self.betas or not all(0 < b < 1 for b in self.betas) or self.start <= 0 or self.eps <= 0:
            raise InputError(
                "betas lie in (0, 1), start and eps are positive",
                found=(self.betas, self.start, self.eps),
                where="TRAC",
            )

    def attach(self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None) -> TRACHandle:
        """Keep θ₀ and hook; ``inputs`` is not needed."""
        refuse_sharded(model, self.name)
        held_parameters(model, optimizer_list(optimizer))
        return TRACHandle(self, model, optimizer)


class TRACHandle(Handle):
    """θ₀ and one row of tuners per optimizer."""

    intervention: TRAC

    def __init__(self, intervention: TRAC, model: nn.Module, optimizer: Optimizers) -> None:
        super().__init__(intervention, model, optimizer)
        self._held = held_parameters(model, self.optimizers)
        self.initial = {n: p.detach().clone() for held in self._held for n, p in held.items()}
        device = next(model.parameters()).device
        kind = torch.float32 if device.type == "mps" else torch.float64
        zeros = torch.zeros(len(self.optimizers), len(intervention.betas), dtype=kind, device=device)
        self.s, self.variance, self.sigma = zeros, zeros.clone(), torch.full_like(zeros, 1e-8)
        self._before: dict[str, Tensor] = {}
        self._h: Tensor | None = None

    def scales(self) -> list[float]:
        """S of each optimizer now."""
        return [max(0.0, float(x)) for x in self.s.sum(1)]

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer) -> None:
        index = self._index(optimizer)
        total = self.s[index].sum() + self.intervention.eps
        scale = getattr(optimizer, "grad_scale", None)
        self._before, h = {}, torch.zeros_like(total)
        for name, p in self._held[index].items():
            if p.grad is None:
                continue
            self._before[name] = p.detach().clone()
            grad = p.grad.to_dense() if p.grad.is_sparse else p.grad
            wide = torch.promote_types(p.dtype, torch.float32)
            apart = p.to(wide) - self.initial[name].to(wide)
            h += (apart * grad.to(wide)).sum(dtype=h.dtype).to(h.device)
        self._h = h / total if scale is None else h / total / scale.to(h)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer) -> None:
        if self._h is None:
            return
        rule, index, h = self.intervention, self._index(optimizer), self._h
        betas = self.s.new_tensor(rule.betas)
        before, old = self._before, self.s[index].sum()
        variance = betas.square() * self.variance[index] + h.square()
        sigma = betas * self.sigma[index] - h
        factor = rule.start / erfi(self.s.new_tensor([0.5**0.5]))
        s = factor * erfi(sigma / (math.sqrt(2) * variance.sqrt() + rule.eps))
        self._before, self._h = {}, None
        if not bool(s.isfinite().all()):
            raise SuppleError(
                "the scale of TRAC is not finite", found=s.tolist(), do="lower the learning rate"
            )
        self.variance[index], self.sigma[index], self.s[index] = variance, sigma, s
        new = s.sum().clamp(min=0)
        for name, theta in before.items():
            p, start = self._held[index][name], self.initial[name]
            # float16 has no scale as small as the first ones: nothing below float32
            wide = torch.promote_types(theta.dtype, torch.float32)
            theta, start = theta.to(wide), start.to(wide)
            delta = (theta - start) / (old + rule.eps).to(theta) + (p.to(wide) - theta)
            p.copy_(start + delta * new.to(theta))

    def _state(self) -> dict[str, Any]:
        tuners = {"s": self.s, "variance": self.variance, "sigma": self.sigma}
        return {
            "initial": {n: t.clone() for n, t in self.initial.items()},
            **{n: t.clone() for n, t in tuners.items()},
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        initial = dict(state.pop("initial"))
        tuners = {n: state.pop(n) for n in ("s", "variance", "sigma")}
        super()._load_state(state)
        shapes = {n: t.shape for n, t in self.initial.items()}
        if {n: t.shape for n, t in initial.items()} != shapes or any(
            t.shape != self.s.shape for t in tuners.values()
        ):
            raise InputError("the state of TRAC belongs to other parameters, betas or optimizers")
        self.initial = {n: t.detach().clone().to(self.initial[n]) for n, t in initial.items()}
        self.s, self.variance, self.sigma = (
            tuners[n].detach().clone().to(self.s) for n in ("s", "variance", "sigma")
        )
