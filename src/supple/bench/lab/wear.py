"""Networks that fell ill by training: recipes that are known to wear a network out, and ordinary training.

Recipes and figures: random labels under SGD kill units; pixel permutations under Adam kill and grow; two-class
tasks under strong weight decay collapse the rank of a leaky network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Task = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
Optimizer = torch.optim.Optimizer


def _random_labels(x: Tensor, y: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, torch.randint(10, y.shape, generator=g)


def _permuted(x: Tensor, y: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x[:, torch.randperm(x.shape[1], generator=g)], y


def _pair(x: Tensor, y: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.randperm(10, generator=g)[:2]
    keep = torch.isin(y, chosen)
    return x[keep], (y[keep] == chosen[0]).long()


def _relabelled(x: Tensor, y: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, torch.randperm(10, generator=g)[y]


def _adam(net: nn.Module, rate: float) -> Optimizer:
    return torch.optim.Adam(net.parameters(), lr=rate)


#: recipe -> tasks, optimizer, steps of each task
RECIPES: dict[str, tuple[Task, Callable[[nn.Module], Optimizer], int]] = {
    "random-labels": (_random_labels, lambda net: torch.optim.SGD(net.parameters(), lr=0.1), 750),
    "permuted": (_permuted, lambda net: _adam(net, 3e-3), 112),
    "decayed-pairs": (
        _pair,
        lambda net: torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=2e-2),  # L2 of 1e-2 as a penalty
        600,
    ),
    "ordinary": (_relabelled, lambda net: _adam(net, 1e-3), 100),
}


def train_(net: nn.Module, recipe: str, tasks: int, x: Tensor, y: Tensor, g: torch.Generator) -> None:
    """Train in place over ``tasks`` tasks of a recipe, batches of 32 drawn with ``g``."""
    draw, make, steps = RECIPES[recipe]
    optimizer = make(net)
    for _ in range(tasks):
        inputs, targets = draw(x, y, g)
        for _ in range(steps):
            index = torch.randint(len(inputs), (32,), generator=g)
            optimizer.zero_grad()
            F.cross_entropy(net(inputs[index]), targets[index]).backward()
            optimizer.step()
