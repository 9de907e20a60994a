"""Optimization readiness: how much one step can be expected to lower the loss, from here.

Evidence: **unverified form**. arXiv 2605.09044 proposes readiness as gradient strength times gradient
reliability with a one-step lower bound; its exact definition was not available. What stands here is the
product that the standard smoothness argument gives, and it should be read as that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from supple.errors import InputError
from supple.functional.gradients import gradient_statistics


class Readiness(NamedTuple):
    """Readiness and its factors, float64 scalars; see `optimization_readiness`."""

    readiness: Tensor  #: strength * reliability, squared gradient units
    strength: Tensor  #: ||E g||^2, unbiased, clamped at 0
    reliability: Tensor  #: ||E g||^2 / E||g_B||^2 in [0, 1]
    expected_decrease: Tensor  #: readiness / (2 L), the one-step bound, in units of the loss


def optimization_readiness(
    per_sample: Tensor, batch_size: int | None = None, smoothness: float = 1.0
) -> Readiness:
    """Gradient strength times gradient reliability, and the one-step bound that they give.

    For an L-smooth loss and a step -eta g_B, E loss(new) <= loss - eta ||G||^2 + eta^2 L E||g_B||^2 / 2, with
    G = E g and E||g_B||^2 = ||G||^2 + tr Cov(g) / B. The best eta lowers the loss by at least

        ||G||^4 / (2 L E||g_B||^2) = strength * reliability / (2 L).

    Evidence tag: unverified (see the module). Compare with the network's own fresh twin at the same probe.

    Args:
        per_sample: (N, P), one flattened loss gradient per sample.
        batch_size: B of the steps in question; default N.
        smoothness: L, curvature bound along the step, > 0.

    Returns:
        `Readiness`. NaN with fewer than 2 samples or with NaN or Inf. No gradient at all: readiness and
        strength 0, reliability NaN.

    Raises:
        InputError: ``batch_size`` < 1 or ``smoothness`` <= 0.

    >>> r = optimization_readiness(torch.tensor([[1.0, 0.0], [1.0, 2.0]]), batch_size=1)
    >>> [round(float(x), 4) for x in r]
    [0.3333, 1.0, 0.3333, 0.1667]
    """
    batch = per_sample.shape[0] if batch_size is None else batch_size
    if batch < 1 and batch_size is not None:
        raise InputError("a batch has at least one sample", found=batch_size)
    if not smoothness > 0:
        raise InputError("smoothness is a positive bound on the curvature", found=smoothness)
    s = gradient_statistics(per_sample)
    strength = s.square_norm.clamp(min=0)
    reliability = strength / (strength + s.variance.clamp(min=0) / max(batch, 1))
    readiness = torch.where(strength == 0, strength, strength * reliability)
    return Readiness(readiness, strength, reliability, readiness / (2 * smoothness))
