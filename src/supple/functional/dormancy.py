"""Units that do nothing: dormant, dead, always on, saturated, or copies of one another.

Shapes: N samples, U units, positions any further axes (pixels, tokens). Every function takes
post-activation responses with the samples on axis 0 and the units on ``unit_dim``, reduces over samples
and positions, and computes in float32 (float64 for float64 input). NaN or Inf in, or no sample: NaN out,
never a good number. Masks are 1.0 / 0.0 / NaN for the same reason.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supple.errors import InputError
from supple.functional._precision import by_unit, mean_magnitude, relative_to_mean, responses

#: activation kind -> (centre of the range, distance from it beyond which a unit counts as saturated)
_SATURATION = {"tanh": (0.0, 0.9), "sigmoid": (0.5, 0.49)}


def dormant_scores(activation: Tensor, unit_dim: int = 1) -> Tensor:
    """Dormancy score of each unit: s_i = E|h_i| / mean_k E|h_k|.

    Sokar et al. 2023 (ReDo). A unit is tau-dormant where s_i <= tau. Scores average 1 over the layer
    (the paper's text says that they sum to 1; its equation and code divide by the mean). The published
    code adds 1e-9 to the denominator; nothing is added here, so that rescaling a layer changes nothing.

    Args:
        activation: (N, U, *positions) by default; (N, T, U) with ``unit_dim=-1``. Post-activation.
        unit_dim: the axis of the units.

    Returns:
        (U,), in [0, U]. A layer that is exactly zero everywhere scores 0 everywhere: all dormant. NaN or
        Inf anywhere in the layer, or no sample, makes the whole layer NaN.

    Raises:
        InputError: no sample axis, or ``unit_dim`` is not an axis of units.

    >>> dormant_scores(torch.tensor([[1.0, -3.0, 0.0], [1.0, 1.0, 0.0]])).tolist()
    [1.0, 2.0, 0.0]
    """
    return relative_to_mean(mean_magnitude(responses(activation, unit_dim)), floor=-1.0, silent=0.0)


def dormant_fraction(scores: Tensor, tau: float) -> Tensor:
    """Share of units whose score is at most ``tau`` (inclusive), of dormancy or GraMa scores alike.

    Args:
        scores: (..., U).
        tau: threshold as a fraction of the layer mean, >= 0.

    Returns:
        (...), in [0, 1]; NaN where a score is NaN or there is no unit.

    Raises:
        InputError: a negative ``tau``.

    >>> dormant_fraction(torch.tensor([1.0, 2.0, 0.0, 0.025]), tau=0.025).item()
    0.5
    """
    if not tau >= 0:
        raise InputError("tau is a fraction of the layer mean and cannot be negative", found=tau)
    share = (scores <= tau).to(scores.dtype).mean(-1)
    return torch.where(scores.isnan().any(-1), torch.nan, share)


def firing_rate(activation: Tensor, unit_dim: int = 1, threshold: float = 0.0) -> Tensor:
    """Share of samples and positions at which |h_i| > ``threshold``.

    Args:
        activation: (N, U, *positions), post-activation.
        unit_dim: the axis of the units.
        threshold: magnitude above which a unit fires; 0 suits activations that are exactly 0 when off.

    Returns:
        (U,), in [0, 1]; NaN for a unit with a NaN or Inf response, and without samples.

    >>> firing_rate(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [0.0, 0.5]
    """
    h = by_unit(activation, unit_dim)
    rate = (h.abs() > threshold).to(h.dtype).mean(0)
    return torch.where(h.isfinite().all(0), rate, torch.nan)


def dead_units(activation: Tensor, unit_dim: int = 1, threshold: float = 0.0) -> Tensor:
    """Mask of the units that never fire on the probe: |h_i| <= ``threshold`` for every sample and position.

    Dohare et al. 2024 (h = 0 on all of 2000 random examples). Meaningful for activations that are exactly
    zero when off (ReLU and its kin); say how many samples were looked at: with few, rare units look dead.

    Returns:
        (U,), 1.0 dead, 0.0 alive, NaN not judged (a NaN or Inf response, or no sample).

    >>> dead_units(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    low, high = _extremes(activation, unit_dim)
    return _mask((low >= -threshold) & (high <= threshold), low, high)


def always_on(activation: Tensor, unit_dim: int = 1, threshold: float = 0.0) -> Tensor:
    """Mask of the units that are on for every sample and position: h_i > ``threshold`` (signed).

    An always-on ReLU unit is a linear unit on this probe: alive, but it adds no nonlinearity.

    Returns:
        (U,), 1.0 always on, 0.0 not, NaN not judged (a NaN or Inf response, or no sample).

    >>> always_on(torch.tensor([[0.5, 2.0], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    low, high = _extremes(activation, unit_dim)
    return _mask(low > threshold, low, high)


def saturation_scores(
    activation: Tensor, kind: str, unit_dim: int = 1, threshold: float | None = None
) -> Tensor:
    """Share of samples and positions at which each unit is saturated.

    tanh: |h| > 0.9 (continual-backpropagation regression code); sigmoid: |h - 0.5| > 0.49, that is h outside
    [0.01, 0.99]. A saturated unit passes little gradient without being silent: dormancy cannot see it.

    Args:
        activation: (N, U, *positions), post-activation.
        kind: "tanh" or "sigmoid".
        unit_dim: the axis of the units.
        threshold: another distance from the centre of the range, in units of h (0.99 is used for tanh too).

    Returns:
        (U,), in [0, 1]; NaN for a unit with a NaN or Inf response, and without samples.

    Raises:
        InputError: an unknown ``kind``.

    >>> saturation_scores(torch.tensor([[0.95, 0.1], [-0.99, 0.95]]), "tanh").tolist()
    [1.0, 0.5]
    """
    if kind not in _SATURATION:
        raise InputError(
            "saturation is defined for tanh and sigmoid", found=kind, do="use dead_units for ReLU and its kin"
        )
    centre, distance = _SATURATION[kind]
    h = by_unit(activation, unit_dim)
    beyond = (h - centre).abs() > (distance if threshold is None else threshold)
    return torch.where(h.isfinite().all(0), beyond.to(h.dtype).mean(0), torch.nan)


def saturated_fraction(
    activation: Tensor,
    kind: str,
    unit_dim: int = 1,
    threshold: float | None = None,
    share: float = 0.95,
) -> Tensor:
    """Share of units that are saturated on at least ``share`` of the samples and positions.

    Args:
        activation, kind, unit_dim, threshold: see `saturation_scores`.
        share: how much of the probe a unit must spend in saturation, in [0, 1].

    Returns:
        scalar in [0, 1]; NaN where a unit could not be judged or there is no unit.

    >>> saturated_fraction(torch.tensor([[0.95, 0.1], [-0.99, 0.95]]), "tanh").item()
    0.5
    """
    scores = saturation_scores(activation, kind, unit_dim, threshold)
    return torch.where(scores.isnan().any(), torch.nan, (scores >= share).to(scores.dtype).mean())


def cloned_units(activation: Tensor, unit_dim: int = 1, centred: bool = True) -> Tensor:
    """Likeness of each unit to its nearest twin: max_{j != i} |cos(r_i, r_j)| of their responses.

    ``r_i`` holds the responses of unit i over samples and positions, minus their mean unless ``centred`` is
    False. Uncentred, any two units that are always on look alike. A unit is called cloned above 0.95.

    Args:
        activation: (N, U, *positions), post-activation.
        unit_dim: the axis of the units.
        centred: subtract each unit's mean response (|cos| is then the absolute correlation).

    Returns:
        (U,), in [0, 1]. A unit with a constant (centred) or zero response has no direction and scores 0: it
        is dead, not cloned. NaN for the whole layer on NaN or Inf, and with fewer than 3 rows (centred) or
        2 rows, where every pair of units is alike.

    >>> r = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, -1.0], [3.0, 6.0, 1.0]])
    >>> [round(x, 4) for x in cloned_units(r).tolist()]
    [1.0, 1.0, 0.0]
    """
    h = by_unit(activation, unit_dim)
    if h.shape[0] < (3 if centred else 2):
        return h.new_full((h.shape[1],), torch.nan)
    if h.shape[1] == 0:
        return h.new_zeros(0)
    finite = h.isfinite().all()
    h = h / torch.where(h.abs().amax(0) > 0, h.abs().amax(0), 1)
    r = h - h.mean(0) if centred else h
    norm = torch.linalg.vector_norm(r, dim=0)
    # below this the "response" is the rounding of the mean
    alive = norm > 8 * torch.finfo(h.dtype).eps * h.shape[0] ** 0.5
    r = torch.where(alive, r / torch.where(alive, norm, 1), 0)
    cosine = (r.mT @ r).abs().clamp(max=1)
    cosine = cosine * (1 - torch.eye(h.shape[1], dtype=h.dtype, device=h.device))
    return torch.where(finite, cosine.amax(-1), torch.nan)


def _extremes(activation: Tensor, unit_dim: int) -> tuple[Tensor, Tensor]:
    """(U,) smallest and largest response of each unit; NaN without samples, and where one is NaN."""
    h = responses(activation, unit_dim)
    if h.shape[0] * h.shape[2] == 0:
        nan = h.new_full((h.shape[1],), torch.nan)
        return nan, nan
    return h.amin((0, 2)), h.amax((0, 2))


def _mask(holds: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """1.0 where it holds, 0.0 elsewhere, NaN for a unit with a response that is not finite."""
    return torch.where(low.isfinite() & high.isfinite(), holds.to(low.dtype), torch.nan)
