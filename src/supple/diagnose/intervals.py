"""Intervals for few paired values: a ratio of means, a mean, a bootstrap over samples.

n pairs; everything in float64 numpy-free Python and torch, since the core needs no statistics package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean, variance

import torch
from torch import Tensor


def student_quantile(p: float, df: int) -> float:
    """Quantile of Student's t by the Cornish-Fisher series; within 1 % for df >= 3.

    >>> round(student_quantile(0.975, 10), 2)
    2.23
    """
    if df < 1:
        raise ValueError("degrees of freedom must be at least 1")
    z = NormalDist().inv_cdf(p)
    terms = (
        z,
        (z**3 + z) / (4 * df),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3),
    )
    return sum(terms)


def ratio_interval(
    top: Sequence[float], bottom: Sequence[float], level: float = 0.95
) -> tuple[float, float, float]:
    """Ratio of two means of paired values with Fieller's interval: (ratio, lo, hi).

    The interval holds every r for which mean(top - r·bottom) does not differ from 0 in a paired t-test.
    Fewer than 2 pairs, or a bottom whose mean does not differ from 0, give an unbounded interval.

    >>> ratio, lo, hi = ratio_interval([0.50, 0.52, 0.49, 0.51], [1.00, 1.01, 0.99, 1.02])
    >>> round(ratio, 3), lo < 0.5 < hi
    (0.502, True)
    """
    n = len(top)
    mean_top, mean_bottom = fmean(top), fmean(bottom)
    ratio = mean_top / mean_bottom if mean_bottom else math.nan
    if n < 2:
        return ratio, -math.inf, math.inf
    t2 = student_quantile((1 + level) / 2, n - 1) ** 2 / n
    cov = sum((a - mean_top) * (b - mean_bottom) for a, b in zip(top, bottom, strict=True)) / (n - 1)
    # mean(top - r bottom)^2 <= t2 var(top - r bottom) is a quadratic inequality a r^2 - 2 b r + c <= 0
    a = mean_bottom**2 - t2 * variance(bottom)
    b = mean_top * mean_bottom - t2 * cov
    c = mean_top**2 - t2 * variance(top)
    disc = b * b - a * c
    if a <= 0:
        return ratio, -math.inf, math.inf
    root = math.sqrt(max(disc, 0.0))  # disc < 0 only by rounding, when the pairs agree exactly
    return ratio, (b - root) / a, (b + root) / a


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean with its t interval; one value gives an unbounded interval, equal values one of width 0."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = student_quantile((1 + level) / 2, len(values) - 1) * math.sqrt(variance(values) / len(values))
    return mean, mean - half, mean + half


def bootstrap(
    statistic: Callable[[Tensor], float], n: int, draws: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of ``statistic(index)`` over resampled indices 0..n-1 (with replacement).

    >>> lo, hi = bootstrap(lambda i: i.double().mean().item(), 100)
    >>> 35 < lo < 49.5 < hi < 65
    True
    """
    generator = torch.Generator().manual_seed(seed)
    values = sorted(statistic(torch.randint(n, (n,), generator=generator)) for _ in range(draws))
    cut = (1 - level) / 2
    return values[math.floor(cut * draws)], values[math.ceil((1 - cut) * draws) - 1]
