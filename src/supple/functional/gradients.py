"""What gradients say about units and about the batch: GraMa scores, diversity, signal to noise.

Shapes: N samples, U units, P parameters. Computed in float32 (scores) or float64 (batch statistics).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from supple.errors import InputError
from supple.functional._precision import axis, double, mean_magnitude, relative_to_mean, responses, single

KINDS = ("weight", "preactivation")


def grama_scores(
    grad: Tensor, kind: str = "weight", unit_dim: int | None = None, minimum: float | None = None
) -> Tensor:
    """GraMa score of each unit: G_i = m_i / mean_k m_k, m_i the mean magnitude of its gradient.

    Liu et al. 2025 (arXiv 2505.24061). A unit is inactive where G_i <= tau. Two forms:

    * ``"weight"``: m_i = mean over fan-in of |dL/dW[i, :]|, the batch gradient as it lies in ``.grad`` (the
      presumed official code). Signs cancel over the batch.
    * ``"preactivation"``: m_i = mean over samples and positions of |dL/dz_i|, z the value before the
      nonlinearity. No cancellation between samples.

    The gradient at the *post*-activation h is wrong, although the paper writes dL/dh: for a ReLU,
    dL/dz = dL/dh * [z > 0], so a dead unit, which passes nothing back and learns nothing, still has
    dL/dh != 0, because that is what the next layer would like it to do. Dead units score 0.4 to 2.0 with it,
    exactly 0 with either form above. The function cannot tell the two apart: take the gradient before the
    nonlinearity, and before an in-place one writes over it.

    Measure after unscaling (GradScaler), before clipping, before weight decay is coupled in.

    Args:
        grad: (U, fan-in...) for ``"weight"``; (N, U, *positions) for ``"preactivation"``.
        kind: which of the two.
        unit_dim: axis of the units; default 0 for ``"weight"`` (1 for a transposed convolution), 1 for
            ``"preactivation"`` (-1 for (N, T, U)).
        minimum: mean magnitude of a layer at or below which it has no signal. Default: the smallest
            normal number of the dtype, below which relative sizes are rounding.

    Returns:
        (U,), in [0, U], mean 1. A layer without gradient signal is NaN everywhere: it cannot say which of
        its units learn, and is neither "all inactive" nor healthy. The published ``+ 1e-9`` in the
        denominator would reset a whole layer whose mean gradient is 1e-12; nothing is added here, the
        score does not change with the scale of the loss. NaN or Inf anywhere makes the layer NaN.

    Raises:
        InputError: an unknown ``kind``, or a shape without the axes it needs.

    >>> grama_scores(torch.tensor([[1.0, -1.0], [0.0, 0.0], [3.0, 1.0]])).tolist()
    [1.0, 0.0, 2.0]
    >>> grama_scores(torch.zeros(2, 3)).tolist()
    [nan, nan]
    """
    if kind not in KINDS:
        raise InputError("unknown kind of gradient", found=kind, do=f"use one of {', '.join(KINDS)}")
    if kind == "preactivation":
        magnitude = mean_magnitude(responses(grad, 1 if unit_dim is None else unit_dim, "grad"))
    else:
        if grad.dim() < 1:
            raise InputError("a weight gradient needs an axis of units", found="a scalar")
        unit = axis(grad, unit_dim or 0, "grad")
        magnitude = mean_magnitude(single(grad).movedim(unit, 0).reshape(1, grad.shape[unit], -1))
    floor = torch.finfo(grad.dtype).tiny if minimum is None else minimum
    return relative_to_mean(magnitude, floor=floor, silent=torch.nan)


class BatchGradient(NamedTuple):
    """Second-order statistics of per-sample gradients; see `gradient_statistics`."""

    square_norm: Tensor  #: unbiased estimate of ||E g||^2, may be negative under pure noise
    variance: Tensor  #: tr Cov(g), unbiased
    mean_square: Tensor  #: mean_i ||g_i||^2


def gradient_statistics(per_sample: Tensor) -> BatchGradient:
    """||E g||^2, tr Cov(g) and E||g||^2 from per-sample gradients, unbiased for independent samples.

    ||E g||^2 is (||sum_i g_i||^2 - sum_i ||g_i||^2) / (N (N - 1)): the plug-in ||mean g||^2 is too large by
    tr Cov(g) / N.

    Args:
        per_sample: (N, P), one flattened gradient per sample; float64 inside.

    Returns:
        three float64 scalars; NaN with fewer than 2 samples or with NaN or Inf in the gradients.

    >>> s = gradient_statistics(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    >>> [round(float(x), 6) for x in s]
    [1.0, 2.0, 3.0]
    """
    g, top = _scaled(per_sample)
    n = g.shape[0]
    if n < 2:
        nan = g.new_full((), torch.nan)
        return BatchGradient(nan, nan, nan)
    total = g.sum(0).square().sum()
    squares = g.square().sum()
    square_norm = (total - squares) / (n * (n - 1))
    mean_square = squares / n
    return BatchGradient(*(x * top * top for x in (square_norm, mean_square - square_norm, mean_square)))


def gradient_diversity(per_sample: Tensor) -> Tensor:
    """Gradient diversity: sum_i ||g_i||^2 / ||sum_i g_i||^2.

    Yin et al. 2018, definition 1. 1/N where all gradients are equal, 1 where they are orthogonal, more where
    they oppose one another.

    Args:
        per_sample: (N, P), one flattened gradient per sample; float64 inside.

    Returns:
        scalar float64 in [1/N, inf]; inf where non-zero gradients cancel; NaN without samples, without
        signal (all zero), or with NaN or Inf.

    >>> gradient_diversity(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).item()
    1.0
    """
    g, _ = _scaled(per_sample)
    return g.square().sum() / g.sum(0).square().sum()


def signal_to_noise(per_sample: Tensor) -> Tensor:
    """Gradient signal-to-noise ratio of one sample: ||E g||^2 / tr Cov(g).

    Its reciprocal is the simple noise scale of McCandlish et al. 2018 (the batch size at which noise and
    signal are equal). Unbiased numerator, clamped at 0: pure noise gives 0, not 1/N.

    Args:
        per_sample: (N, P), one flattened gradient per sample; float64 inside.

    Returns:
        scalar float64 in [0, inf]; inf where all gradients are equal; NaN with fewer than 2 samples,
        without signal (all zero), or with NaN or Inf.

    >>> round(signal_to_noise(torch.tensor([[1.0, 0.0], [1.0, 2.0]])).item(), 6)
    0.5
    """
    s = gradient_statistics(per_sample)
    return s.square_norm.clamp(min=0) / s.variance.clamp(min=0)


def _scaled(per_sample: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients over their largest entry, in float64, so that squares neither overflow nor vanish."""
    if per_sample.dim() != 2:
        raise InputError(
            "per-sample gradients are a matrix (samples, parameters)",
            found=f"shape {tuple(per_sample.shape)}",
            do="flatten and concatenate the parameters of each sample",
        )
    g = double(per_sample)
    top = g.detach().abs().amax() if g.numel() else g.new_zeros(())
    top = torch.where(top > 0, top, torch.where(top.isnan(), top, 1.0))
    return g / top, top
