"""FIRE: at a boundary, replace every weight matrix by the nearest isometry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.errors import AttachError, InputError
from supple.functional import weight_matrix
from supple.interventions.base import Intervention
from supple.interventions.handle import Handle, Optimizers
from supple.interventions.registry import register
from supple.interventions.schedule import Schedule
from supple.layouts import is_linear
from supple.status import Mechanism
from supple.topology import trace


def polar_factor(matrix: Tensor, scale: float = 1.0) -> Tensor:
    """The isometry nearest to a matrix: U Vᵀ of its thin SVD, times ``scale``.

    Minimises ‖X - W‖_F among all X with Xᵀ X = scale² I (or X Xᵀ, on the short side). Computed in float64.
    A direction whose singular value is zero has no nearest isometry; the SVD's own choice is taken.

    >>> polar_factor(torch.diag(torch.tensor([3.0, 0.5])))
    tensor([[1., 0.],
            [0., 1.]])
    """
    u, _, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (scale * (u @ vt)).to(matrix.dtype)


@register
@dataclass(frozen=True)
class FIRE(Intervention):
    """W <- scale · polar(W) for every hidden weight matrix at each task boundary.

    arXiv 2602.08040 (ICLR 2026). Only the abstract could be read: it names the polar factor by
    Newton-Schulz iterations; here the factor is exact (float64 SVD), and which layers are included and how
    they are scaled is unverified. Convolutions are treated as (O, I·kh·kw). Optimizer state is kept.

    Args:
        every: "task" (default), a number of steps, a callable, or "boundary" (see `LayerReset`).
        scale: common factor of the isometry; √2 keeps the variance of a ReLU layer. Unverified default.
        output: whether the output layer is included; unverified default. ``inputs`` at attach tell which layer
            that is; without them it is taken to be the last one of ``model.named_modules()``.
    """

    every: Schedule = "task"
    scale: float = 1.0
    output: bool = False

    mechanism: ClassVar[Mechanism] = Mechanism.RANK_COLLAPSE
    cost: ClassVar[str] = "low"
    level: ClassVar[int] = 2
    at_boundary: ClassVar[bool] = True
    evidence: ClassVar[str] = "unverified"
    source: ClassVar[str] = "FIRE, arXiv 2602.08040"

    def attach(self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None) -> FIREHandle:
        return FIREHandle(self, model, optimizer, self._layers(model, inputs))

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise InputError(
                "FIRE scales isometries by a positive number",
                found=self.scale,
                where="scale",
                do="for example 1.0",
            )

    def _layers(self, model: nn.Module, inputs: Any) -> list[tuple[str, nn.Module]]:
        """The layers whose matrices are rewritten, by name."""
        found: list[tuple[str, nn.Module]] = [
            (name, m)
            for name, m in model.named_modules()
            if (is_linear(m) or isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)) and m.weight.requires_grad
        ]
        outputs = {found[-1][0]} if found else set()
        if inputs is not None and not self.output:
            outputs = {x.module for x in trace(model, inputs).layers.values() if x.output}
        chosen = [(n, m) for n, m in found if self.output or n not in outputs]
        if not chosen:
            raise InputError(
                "no weight matrix to re-orthogonalise",
                found=f"{len(found)} Linear or Conv layer(s)",
                do="pass output=True to include the last one",
            )
        for name, module in chosen:
            if "weight" not in module._parameters:
                raise AttachError(
                    "FIRE cannot write this layer's weight",
                    found="it is recomputed from other parameters (weight_norm, parametrize, prune)",
                    where=name,
                    do="remove the parametrisation first",
                )
        return chosen


class FIREHandle(Handle):
    """Rewrites the matrices when a boundary has been announced or the schedule says so."""

    intervention: FIRE

    def __init__(
        self, intervention: FIRE, model: nn.Module, optimizer: Optimizers, layers: list[tuple[str, nn.Module]]
    ) -> None:
        super().__init__(intervention, model, optimizer)
        self._layers = layers

    def orthogonalise_(self) -> dict[str, float]:
        """Rewrite all matrices now; the relative change of each, by layer. All or nothing."""
        new = []
        for name, module in self._layers:
            weight = module.get_parameter("weight").detach()
            if not torch.isfinite(weight).all():
                raise InputError("a weight is not finite; nothing was changed", where=name)
            blocks = weight_matrix(weight, groups=getattr(module, "groups", 1))
            flat = blocks if blocks.dim() == 3 else blocks.unsqueeze(0)
            factors = torch.stack([polar_factor(block, self.intervention.scale) for block in flat])
            new.append(factors.reshape(weight.shape))
        change = {}
        with torch.no_grad():
            for (name, module), weight in zip(self._layers, new, strict=True):
                own = module.get_parameter("weight")
                norm = float(own.double().norm())
                change[name] = float((weight.double() - own.double()).norm()) / max(norm, 1e-300)
                own.copy_(weight)
        return change

    def _after_step(self, optimizer: Optimizer) -> None:
        if optimizer is self.optimizers[0] and self.due(self.intervention.every):
            self.orthogonalise_()

    def _at_boundary(self) -> None:
        self.orthogonalise_()
