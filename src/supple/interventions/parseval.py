"""Parseval regularisation: hidden weight matrices stay near orthogonal ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from supple.errors import AttachError, InputError
from supple.functional import parseval_penalty
from supple.interventions.matrices import Inventory, inventory
from supple.interventions.penalty import Penalty, PenaltyHandle, total
from supple.interventions.registry import register
from supple.status import Mechanism


class ParsevalHandle(PenaltyHandle["Parseval"]):
    """Knows the hidden matrices; without ``inputs`` at attach it takes the last matrix for the output layer."""

    parts: Inventory

    def prepare(self, inputs: Any) -> None:
        topology = None
        if inputs is not None and not self.rule.output:
            from supple.topology import trace

            topology = trace(self.model, inputs)
        parts = inventory(self.model, output=self.rule.output, topology=topology)
        if topology is None and not self.rule.output and parts.matrices:
            last = parts.matrices[-1]
            kept = [m for m in parts.matrices if m.module is not last.module]
            parts = dataclasses.replace(parts, matrices=kept)
            parts.skipped[last.name] = (
                "the last matrix, taken for the output layer; pass inputs to have it traced"
            )
        held = {n for held in self.held for n in held}
        # blocks of one matrix each: rows of another group or block have nothing to do with these
        parts.matrices = [m for m in parts.matrices if not m.parameters.isdisjoint(held)]
        if not parts.matrices:
            raise AttachError("Parseval finds no hidden weight matrix", found=parts.skipped)
        self.parts = parts

    @property
    def skipped(self) -> dict[str, str]:
        """Parameters that the penalty does not cover, and why."""
        return dict(self.parts.skipped)

    def term(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        rule, terms = self.rule, []
        for matrix in self.parts.matrices:
            if matrix.parameters.isdisjoint(parameters):
                continue
            weight = matrix.read()
            factor = (rule.width / min(weight.shape[-2:])) ** 2
            blocks = weight if weight.dim() == 3 else weight[None]
            terms += [factor * parseval_penalty(block, rule.scale) for block in blocks]
        return total(terms)


@register
@dataclass(frozen=True, kw_only=True)
class Parseval(Penalty):
    """J + coef · Σ_l (width / d_l)² ‖W_l W_lᵀ − scale · I‖_F², over hidden weight matrices.

    All singular values are drawn to √scale, the small ones too, which a penalty on σ₁ does not do. Mechanism: rank
    collapse. Cost: one Gram matrix per layer and step, O(d² n). Source: Chung, Cherif, Meger, Precup, "Parseval
    regularization for continual reinforcement learning", NeurIPS 2024.

    W is taken on its short side, d = min(m, n): W Wᵀ of a matrix with more rows than columns can never be a
    multiple of I (the published code only has square hidden layers, where d is their width). Convolution kernels
    count as (O, I·kh·kw), one matrix per group; packed projections by block. Biases, norms, embeddings and the
    output layer are left out; ``handle.skipped`` lists them. Beside this term the authors give each layer a learned
    diagonal (MetaWorld) or the input a learned scale (quadruped), since orthogonal layers cannot stretch; that is
    an architecture and not part of this.

    Args:
        coef: 1e-3, as in their code for gridworld and MetaWorld (1e-4 for LunarLander and quadruped).
        scale: s = gain². 2 fits their orthogonal initialisation with gain √2; 1 keeps lengths.
        width: the reference width 64 of their factor (64 / width)².
        output: the output layer too.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Tanh(), torch.nn.Linear(2, 1))
    >>> _ = model[0].weight.data.copy_(torch.eye(2))
    >>> rule = Parseval(coef=1.0, width=2)
    >>> rule.attach(model, torch.optim.SGD(model.parameters(), lr=0.1)).penalty().item()
    2.0
    """

    handle_class: ClassVar[type[PenaltyHandle[Any]]] = ParsevalHandle
    mechanism: ClassVar[Mechanism | None] = Mechanism.RANK_COLLAPSE
    cost: ClassVar[str] = "medium"
    level: ClassVar[int] = 2
    source: ClassVar[str] = "Chung et al., NeurIPS 2024"

    coef: float = 1e-3
    scale: float = 2.0
    width: int = 64
    output: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0 or self.width < 1:
            raise InputError("scale must be positive and width at least 1", found=(self.scale, self.width))

    def term(self, parameters: Mapping[str, Tensor], handle: PenaltyHandle[Any]) -> Tensor | None:
        return handle.term(parameters)
