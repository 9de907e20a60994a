"""How much of a unit score is luck of the probe: standard errors by a bootstrap over probe samples.

Shape letters: N samples, U units, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from supple.observe.guard import guard
from supple.observe.probe import Observation
from supple.topology.inputs import Forward, call
from supple.topology.taps import eager, tap

DRAWS, TAU = 50, 0.025


def sampling_errors(
    model: nn.Module,
    pair: tuple[Any, Any],
    loss_fn: Callable[..., Any],
    seen: Observation,
    forward: Forward | None = None,
) -> dict[tuple[str, str], float]:
    """Standard error over probe samples of the GraMa share, per hidden layer and pooled (``"*"``).

    The share is of units with mean_n |dL/dz_nu| <= 0.025 of the mean over units; the bootstrap redraws n.
    Layers whose gradient is missing are left out; nothing is returned where the loss is not finite.
    """
    hidden = {x.module: x.name for x in seen.topology.hidden if not x.part}
    with guard(model, evaluate=True), eager(), tap(model) as taps:
        loss = loss_fn(call(model, pair[0], forward), pair[1])
        if not bool(loss.isfinite()) or not loss.requires_grad:
            return {}
        wanted = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(loss, wanted, allow_unused=True)
    inactive: dict[str, Tensor] = {}
    for module, name in hidden.items():
        grads = taps.pre_grad.get(module, [])
        if len(grads) == 1 and grads[0] is not None:
            inactive[name] = _resampled(_per_sample(grads[0], taps.pre[module][0].unit_dim))
    errors = {("grama", name): float(x.float().mean(1).std()) for name, x in inactive.items()}
    if inactive:
        pooled = torch.cat(list(inactive.values()), 1).float().mean(1)
        errors["grama", "*"] = float(pooled.std())
    return errors


def _per_sample(grad: Tensor, unit_dim: int) -> Tensor:
    """(N, U) mean absolute gradient."""
    grad = grad.abs().double().movedim(unit_dim, 1)
    return grad.flatten(2).mean(2) if grad.dim() > 2 else grad


def _resampled(grad_NU: Tensor) -> Tensor:
    """(B, U) whether a unit counts as inactive in each bootstrap draw."""
    n = len(grad_NU)
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(n, (DRAWS, n), generator=generator)
    counts_BN = torch.zeros(DRAWS, n, dtype=torch.float64).scatter_add_(
        1, index, torch.ones(DRAWS, n, dtype=torch.float64)
    )
    score_BU = counts_BN.to(grad_NU.device) @ grad_NU
    return score_BU <= TAU * score_BU.mean(1, keepdim=True)
