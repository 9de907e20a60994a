"""Optimization readiness: how much one step can be expected to lower the loss, from here.

Evidence: **unverified form**. Wang et al. 2026 (arXiv 2605.09044) define readiness as gradient strength times
gradient reliability and prove that it bounds the gain of one step from below. The paper's abstract was read;
its equations were not available, and the form here is the one of a public re-implementation that names them:
strength ||E g||^2 / L, reliability ||E g||^2 / E||g_B||^2. It agrees with the standard smoothness argument given
below, which stands on its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from supple.errors import InputError
from supple.functional._precision import double
from supple.functional.gradients import gradient_statistics


class Readiness(NamedTuple):
    """Readiness and its factors, float64 scalars; see `optimization_readiness`."""

    readiness: Tensor  #: strength * reliability
    strength: Tensor  #: ||E g||^2 / loss (without a loss: ||E g||^2), unbiased, clamped at 0
    reliability: Tensor  #: ||E g||^2 / E||g_B||^2 in [0, 1]
    expected_decrease: Tensor  #: readiness / (2 L_smooth): bound on the gain of the best step


def optimization_readiness(
    per_sample: Tensor,
    batch_size: int | None = None,
    smoothness: float = 1.0,
    loss: Tensor | float | None = None,
) -> Readiness:
    """Gradient strength times gradient reliability, and the one-step bound that they give.

    For a loss f that is L-smooth and a step -eta g_B, E f(new) <= f - eta ||G||^2 + eta^2 L E||g_B||^2 / 2, with
    G = E g and E||g_B||^2 = ||G||^2 + tr Cov(g) / B. The best eta lowers the loss by at least

        ||G||^4 / (2 L E||g_B||^2) = ||G||^2 * reliability / (2 L),

    and its share of the loss by that over f: strength ||G||^2 / f times reliability, up to 2 L. With ``loss`` the
    result is that relative form, which is comparable between networks whose losses differ; without it the
    absolute one. ||G||^2 is estimated without bias from pairs of different samples (the re-implementation takes
    the squared norm of the gradient over a large validation set, and 128 batches of 4 for E||g_B||^2).

    Evidence tag: unverified (see the module). Compare with the network's own fresh twin at the same probe.

    Args:
        per_sample: (N, P), one flattened loss gradient per sample.
        batch_size: B of the steps in question; default N.
        smoothness: L, curvature bound along the step, > 0.
        loss: f at this point, > 0, for the relative form.

    Returns:
        `Readiness`. NaN with fewer than 2 samples, with NaN or Inf, or where ``loss`` is not positive. No
        gradient at all: readiness and strength 0, reliability NaN.

    Raises:
        InputError: ``batch_size`` < 1 or ``smoothness`` <= 0.

    >>> r = optimization_readiness(torch.tensor([[1.0, 0.0], [1.0, 2.0]]), batch_size=1)
    >>> [round(float(x), 4) for x in r]
    [0.3333, 1.0, 0.3333, 0.1667]
    >>> r = optimization_readiness(torch.tensor([[1.0, 0.0], [1.0, 2.0]]), batch_size=1, loss=2.0)
    >>> round(float(r.strength), 4), round(float(r.readiness), 4)
    (0.5, 0.1667)
    """
    batch = per_sample.shape[0] if batch_size is None else batch_size
    if batch < 1 and batch_size is not None:
        raise InputError("a batch has at least one sample", found=batch_size)
    if not smoothness > 0:
        raise InputError("smoothness is a positive bound on the curvature", found=smoothness)
    s = gradient_statistics(per_sample)
    signal = s.square_norm.clamp(min=0)
    reliability = signal / (signal + s.variance.clamp(min=0) / max(batch, 1))
    strength = signal
    if loss is not None:
        level = double(torch.as_tensor(loss, device=signal.device))
        strength = torch.where(level > 0, signal / torch.where(level > 0, level, 1), torch.nan)
    readiness = torch.where(strength == 0, strength, strength * reliability)
    return Readiness(readiness, strength, reliability, readiness / (2 * smoothness))
