"""Utilities of continual backpropagation: how much a unit contributes to its consumers.

Shapes: N samples, U units, K outputs of the consumer. Activations have samples on axis 0 and units on
``unit_dim``; an outgoing weight (K, U, taps...) has the units on axis 1 (as Linear and Conv store it), an
incoming one (U, fan-in...) on axis 0. Where a layer has several consumers, or a flatten in between, build
the magnitudes with `outgoing_magnitude` and add them. float32 or better; NaN and Inf spread to their unit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supple.errors import InputError
from supple.functional._precision import by_unit, single


def contribution_utility(activation: Tensor, outgoing: Tensor, unit_dim: int = 1) -> Tensor:
    """Contribution utility: E|h_i| * sum_k |W_out[k, i]|.

    Dohare et al. 2024 (Nature), Algorithm 1, of one batch; average over steps with `running_average`.
    Published code takes the mean over consumers: the same ranking within a layer.

    Args:
        activation: (N, U, *positions), post-activation.
        outgoing: weight (K, U, taps...), or magnitudes (U,) from `outgoing_magnitude`.
        unit_dim: axis of the units in ``activation``.

    Returns:
        (U,), >= 0; NaN without samples.

    Raises:
        InputError: numbers of units that differ.

    >>> h, out = torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([[1.0, 2.0], [-1.0, 1.0]])
    >>> contribution_utility(h, out).tolist()
    [4.0, 3.0]
    """
    return _times(by_unit(activation, unit_dim).abs().mean(0), outgoing)


def zero_contribution_utility(
    activation: Tensor, outgoing: Tensor, mean: Tensor | None = None, unit_dim: int = 1
) -> Tensor:
    """Mean-corrected contribution: E|h_i - mean_i| * sum_k |W_out[k, i]|.

    A unit with a constant response contributes no more than a bias does, and gets 0 here. Dohare et al.
    2021 (arXiv 2108.06325) use a running mean; pass it as ``mean``.

    Args:
        activation, outgoing, unit_dim: as in `contribution_utility`.
        mean: (U,) mean response; default that of this batch.

    >>> zero_contribution_utility(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([1.0, 1.0])).tolist()
    [1.0, 0.0]
    """
    h = by_unit(activation, unit_dim)
    centre = h.mean(0) if mean is None else single(mean)
    return _times((h - centre).abs().mean(0), outgoing)


def adaptable_contribution_utility(
    activation: Tensor,
    outgoing: Tensor,
    incoming: Tensor,
    mean: Tensor | None = None,
    unit_dim: int = 1,
) -> Tensor:
    """Adaptable contribution: the mean-corrected contribution over mean_j |W_in[i, j]|.

    A unit with small incoming weights changes its function faster for the same step. arXiv 2108.06325; the
    Continual ImageNet configurations of the Nature code use this one, its text states the plain form.

    Args:
        activation, outgoing, mean, unit_dim: as in `zero_contribution_utility`.
        incoming: (U, fan-in...), units on axis 0.

    Returns:
        (U,), in [0, inf]; a unit that contributes nothing gets 0 also where its incoming weights are all 0.

    >>> h, out = torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([1.0, 1.0])
    >>> adaptable_contribution_utility(h, out, torch.tensor([[0.5, 0.5], [0.0, 0.0]])).tolist()
    [2.0, 0.0]
    """
    contribution = zero_contribution_utility(activation, outgoing, mean, unit_dim)
    fan = single(incoming).flatten(1).abs().mean(1)
    _check(contribution, fan)
    return torch.where(contribution == 0, 0, contribution / fan)


def outgoing_magnitude(weight: Tensor, unit_dim: int = 1, reduction: str = "sum") -> Tensor:
    """Magnitude of what leaves each unit: sum (or mean) of |W_out| over consumers and taps.

    Args:
        weight: (K, U, taps...); after a flatten, reshape (K, U * p) to (K, U, p) first.
        unit_dim: axis of the units (0 for a transposed convolution).
        reduction: "sum" (Nature's listing) or "mean" (its code); one ranking within a layer.

    Returns:
        (U,), >= 0.

    >>> outgoing_magnitude(torch.tensor([[1.0, 2.0], [-1.0, 1.0]])).tolist()
    [2.0, 3.0]
    """
    if reduction not in ("sum", "mean"):
        raise InputError("unknown reduction", found=reduction, do='use "sum" or "mean"')
    rows = single(weight).movedim(unit_dim, 0).flatten(1).abs()
    return rows.sum(1) if reduction == "sum" else rows.mean(1)


def running_average(previous: Tensor, value: Tensor, decay: float = 0.99) -> Tensor:
    """u <- decay * u + (1 - decay) * value, starting from 0; see `age_corrected`.

    Keep it in float32: a bf16 average with decay 0.999 does not move.

    >>> round(running_average(torch.tensor(0.0), torch.tensor(1.0)).item(), 4)
    0.01
    """
    return single(previous).lerp(single(value), 1 - decay)


def age_corrected(running: Tensor, age: Tensor, decay: float = 0.99) -> Tensor:
    """Running average without its bias to 0: u / (1 - decay^age).

    Without it a unit of age 100 scores 0.634 of its worth and is picked again first.

    Args:
        running: (U,) from `running_average`.
        age: (U,) updates since the unit was born; at age 0 nothing is known: NaN.
        decay: that of the average.

    >>> age_corrected(torch.tensor([0.01]), torch.tensor([1])).round(decimals=4).tolist()
    [1.0]
    """
    held = 1 - decay ** single(age)
    return torch.where(held == 0, torch.nan, single(running) / held)


def _times(magnitude: Tensor, outgoing: Tensor) -> Tensor:
    out = single(outgoing) if outgoing.dim() == 1 else outgoing_magnitude(outgoing)
    _check(magnitude, out)
    return magnitude * out


def _check(magnitude: Tensor, other: Tensor) -> None:
    if magnitude.shape != other.shape:
        raise InputError(
            "activation and weight disagree on the number of units",
            found=f"{magnitude.shape[-1]} and {other.shape[-1]}",
            do="reshape a flattened consumer (K, U * p) to (K, U, p)",
        )
