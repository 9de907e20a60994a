"""An intervention of one's own: clip every weight to the range of its initialisation (about 40 lines).

Elsayed et al., "Weight Clipping for Deep Continual and Reinforcement Learning", arXiv 2407.01704: after each
step every weight and bias is clamped to ±kappa / sqrt(fan_in). Run: ``python examples/own_intervention.py``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from supple.errors import InputError
from supple.interventions import Handle, Intervention, register
from supple.interventions.handle import Optimizers
from supple.status import Mechanism


class ClipHandle(Handle):
    """Acts in the step post-hook: the parameters have moved, no graph is alive."""

    def __init__(self, rule: ClipToInit, model: nn.Module, optimizer: Optimizers) -> None:
        self.bounds = rule.bounds(model)  # check everything before the hooks are set
        super().__init__(rule, model, optimizer)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer) -> None:
        for parameter, bound in self.bounds:
            if parameter.requires_grad:
                parameter.clamp_(-bound, bound)


@register  # known by its class name to `supple.interventions.create`, the bench and the command line
@dataclass(frozen=True, kw_only=True)
class ClipToInit(Intervention):
    """theta <- clamp(theta, ±kappa / sqrt(fan_in)) after each step, for Linear and convolution layers."""

    mechanism: ClassVar[Mechanism | None] = Mechanism.WEIGHT_GROWTH
    cost: ClassVar[str] = "low"
    source: ClassVar[str] = "Elsayed et al., arXiv 2407.01704"

    kappa: float = 2.0  # the paper's grid is 1 to 5

    def __post_init__(self) -> None:
        if not self.kappa > 0:
            raise InputError("ClipToInit: kappa must be positive", found=self.kappa)

    def bounds(self, model: nn.Module) -> list[tuple[nn.Parameter, float]]:
        layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
        if not layers:
            raise InputError("ClipToInit finds no Linear or convolution layer", found=type(model).__name__)
        return [
            (p, self.kappa / m.weight[0].numel() ** 0.5) for m in layers for p in m.parameters(recurse=False)
        ]

    def attach(self, model: nn.Module, optimizer: Optimizers, *, inputs: Any = None) -> ClipHandle:
        return ClipHandle(self, model, optimizer)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = torch.randn(256, 16), torch.randint(0, 4, (256,))
    with ClipToInit(kappa=1.0).attach(model, optimizer):
        for _ in range(200):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    print(f"largest weight of the first layer: {model[0].weight.abs().max():.3f} (bound 0.250)")
