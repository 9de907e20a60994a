"""Networks that fell ill by training: recipes that are known to wear a network out, and ordinary training.

Recipes and figures: random labels under SGD kill units; pixel permutations under Adam kill and grow; two-class
tasks under strong weight decay collapse the rank of a leaky network; REINFORCE with one best action makes a policy
certain (entropy 0, logits of 10 and more), and saturates it where its units are bounded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]
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


def _best_action(x: Tensor, y: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, torch.randint(10, (), generator=g).expand_as(y)


def _supervised(outputs: Tensor, targets: Tensor, g: torch.Generator) -> Tensor:
    return F.cross_entropy(outputs, targets)


def _reinforce(outputs: Tensor, best: Tensor, g: torch.Generator) -> Tensor:
    """-(r - 1/10) log pi(a) of one drawn action a each, with reward 1 for the best one; 1/10 is its mean by chance."""
    logs = F.log_softmax(outputs, 1)
    action = torch.multinomial(logs.detach().exp(), 1, generator=g)
    reward = (action[:, 0] == best).to(logs.dtype)
    return -((reward - 0.1) * logs.gather(1, action)[:, 0]).mean()


def _adam(net: nn.Module, rate: float) -> Optimizer:
    return torch.optim.Adam(net.parameters(), lr=rate)


#: recipe -> tasks, loss, optimizer, steps of each task
RECIPES: dict[str, tuple[Task, Loss, Callable[[nn.Module], Optimizer], int]] = {
    "policy": (_best_action, _reinforce, lambda net: _adam(net, 3e-3), 600),
    "random-labels": (
        _random_labels,
        _supervised,
        lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
        750,
    ),
    "permuted": (_permuted, _supervised, lambda net: _adam(net, 3e-3), 112),
    "decayed-pairs": (
        _pair,
        _supervised,
        lambda net: torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=2e-2),  # L2 of 1e-2 as a penalty
        600,
    ),
    "ordinary": (_relabelled, _supervised, lambda net: _adam(net, 1e-3), 100),
}


def train_(net: nn.Module, recipe: str, tasks: int, x: Tensor, y: Tensor, g: torch.Generator) -> None:
    """Train in place over ``tasks`` tasks of a recipe, batches of 32 drawn with ``g``."""
    draw, loss, make, steps = RECIPES[recipe]
    optimizer = make(net)
    for _ in range(tasks):
        inputs, targets = draw(x, y, g)
        for _ in range(steps):
            index = torch.randint(len(inputs), (32,), generator=g)
            optimizer.zero_grad()
            loss(net(inputs[index]), targets[index], g).backward()
            optimizer.step()
