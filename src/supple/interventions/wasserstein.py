"""Wasserstein regularisation: the entries of each tensor keep the distribution they had at the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from supple.errors import InputError
from supple.functional import wasserstein_penalty
from supple.interventions.l2_init import InitialHandle
from supple.interventions.penalty import Penalty, PenaltyHandle, total
from supple.interventions.registry import register
from supple.status import Mechanism


class WassersteinHandle(InitialHandle["Wasserstein"]):
    """θ₀ is kept sorted, which is all that the term needs of it."""

    def prepare(self, inputs: Any) -> None:
        super().prepare(inputs)
        self.initial = {n: t.flatten().sort().values.view_as(t) for n, t in self.initial.items()}


@register
@dataclass(frozen=True, kw_only=True)
class Wasserstein(Penalty):
    """J + coef · Σ_tensors ‖sort(θ) − sort(θ₀)‖², θ₀ the parameters at the moment of attaching.

    n times the squared empirical 2-Wasserstein distance between the entries now and then: their distribution is
    held, not their places, so that weights may exchange roles. Mechanism: weight growth. Cost: a sort of every
    tensor per step, O(n log n), eight times a plain step for an MLP at batch 128 (docs/overhead.md). Source:
    Lewandowski, Tanaka, Schuurmans, Machado, arXiv 2312.00246.

    Attach it to the fresh network, as L2-Init. All parameters count, biases and norms too, each as a tensor of its
    own; in equal entries the order of the sort decides where the gradient goes. Paper and code: the paper's sum is
    ``reduction="sum"``; the code of Chung et al. (the Parseval paper) divides each tensor's term by its number of
    entries, which is ``"mean"``.

    Args:
        coef: 1e-3, the value in the code of Chung et al. for its mean form; no value for the sum is verified.
        reduction: "sum" or "mean" over the entries of a tensor.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    >>> handle = Wasserstein(coef=1.0).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> _ = model.weight.data.copy_(torch.tensor([[2.0, 1.0]]))  # other places, the same values
    >>> handle.penalty().item()
    0.0
    """

    handle_class: ClassVar[type[PenaltyHandle[Any]]] = WassersteinHandle
    mechanism: ClassVar[Mechanism | None] = Mechanism.WEIGHT_GROWTH
    cost: ClassVar[str] = "high"
    level: ClassVar[int] = 1
    source: ClassVar[str] = "Lewandowski et al., arXiv 2312.00246"

    coef: float = 1e-3
    reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction not in ("sum", "mean"):
            raise InputError("unknown reduction", found=self.reduction, do='use "sum" or "mean"')

    def term(self, parameters: Mapping[str, Tensor], handle: PenaltyHandle[Any]) -> Tensor | None:
        assert isinstance(handle, WassersteinHandle)
        return total(
            wasserstein_penalty(p, handle.initial[n]) / (p.numel() if self.reduction == "mean" else 1)
            for n, p in parameters.items()
        )
