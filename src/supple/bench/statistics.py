"""Statistics of comparisons over seeds: intervals, interquartile means, pairs, curves.

NumPy alone. Every function refuses NaN and empty input, since a mean over what is left would be a
figure of the runs that survived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from supple.errors import InputError

Floats: TypeAlias = npt.NDArray[np.float64]
Values: TypeAlias = Sequence[float] | Floats

#: resamples of a bootstrap, as in Agarwal et al. 2021
RESAMPLES = 2000
#: up to this many pairs all sign patterns are counted instead of drawn
EXACT_PAIRS = 14


@dataclass(frozen=True)
class Estimate:
    """A value with its interval. ``lo`` and ``hi`` are NaN where one sample gives no interval."""

    value: float
    lo: float
    hi: float
    samples: int

    def __str__(self) -> str:
        if math.isnan(self.lo):
            return f"{self.value:.3f} (one run, no interval)"
        return f"{self.value:.3f} [{self.lo:.3f}, {self.hi:.3f}]"


@dataclass(frozen=True)
class Paired:
    """A difference over pairs of equal seed: mean, t interval, sign-flip p value, how many are above zero."""

    difference: Estimate
    p_value: float
    above: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero. One pair is never clear."""
        return self.difference.lo > 0 or self.difference.hi < 0


def _checked(values: Values, what: str, dims: int = 1) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dims or array.size == 0:
        raise InputError(f"{what} needs a non-empty array of {dims} axes", found=f"shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(
            f"{what} needs finite values", found=f"{int((~np.isfinite(array)).sum())} that are not"
        )
    return array


# -- one sample ---------------------------------------------------------------------------------
def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t for whole degrees of freedom, from its finite trigonometric series.

    Abramowitz & Stegun 26.7.3 and 26.7.4, inverted by bisection.

    >>> round(t_quantile(0.975, 2), 4)
    4.3027
    """
    if df < 1 or not 0.0 < p < 1.0:
        raise InputError("t_quantile needs df >= 1 and 0 < p < 1", found=(p, df))
    if p < 0.5:
        return -t_quantile(1.0 - p, df)
    lo, hi = 0.0, math.pi / 2
    for _ in range(200):
        theta = (lo + hi) / 2
        if 0.5 + _t_central(theta, df) / 2 < p:
            lo = theta
        else:
            hi = theta
    return math.tan((lo + hi) / 2) * math.sqrt(df)


def _t_central(theta: float, df: int) -> float:
    """P(|T| < t) for t = tan(theta) sqrt(df)."""
    cos2 = math.cos(theta) ** 2
    start, term = (1, math.sin(theta)) if df % 2 == 0 else (2, math.sin(theta) * math.cos(theta))
    total = 0.0
    for k in range(start, df, 2):
        total += term
        term *= cos2 * k / (k + 1)
    return total if df % 2 == 0 else 2 / math.pi * (theta + total)


def mean(values: Values, level: float = 0.95) -> Estimate:
    """Mean with Student's t interval, the right one for a few seeds.

    >>> str(mean([0.5, 0.6, 0.7]))
    '0.600 [0.352, 0.848]'
    """
    x = _checked(values, "mean")
    if len(x) == 1:
        return Estimate(float(x[0]), math.nan, math.nan, 1)
    half = t_quantile(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Estimate(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


def interquartile_mean(values: Values) -> float:
    """Mean of the middle half: ⌊n/4⌋ values are cut off at each end, over all axes.

    >>> interquartile_mean([0, 1, 2, 100])
    1.5
    """
    flat = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    flat = _checked(flat, "interquartile_mean")
    cut = len(flat) // 4
    return float(flat[cut : len(flat) - cut].mean())


def bootstrap(
    scores: Values,
    statistic: Callable[[Floats], float] = interquartile_mean,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Percentile interval by stratified resampling: runs are drawn anew within each column.

    Args:
        scores: (runs,) of one protocol, or (runs, protocols).
        statistic: of an array of that shape.

    Source: Agarwal et al. 2021 ("Deep RL at the edge of the statistical precipice").

    >>> e = bootstrap([0.5, 0.6, 0.7, 0.8])
    >>> 0.5 <= e.lo <= e.value <= e.hi <= 0.8
    True
    """
    x = np.asarray(scores, dtype=np.float64)
    x = _checked(x, "bootstrap", dims=2 if x.ndim == 2 else 1)
    table = x.reshape(len(x), -1)
    if len(table) == 1:
        return Estimate(statistic(x), math.nan, math.nan, 1)
    draw = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        rows = draw.integers(len(table), size=table.shape)
        values.append(statistic(np.take_along_axis(table, rows, axis=0).reshape(x.shape)))
    lo, hi = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(statistic(x), float(lo), float(hi), len(table))


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a share: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n). NaN for n = 0.

    Wilson 1927.

    >>> [round(v, 3) for v in wilson(9, 10)]
    [0.596, 0.982]
    """
    if n == 0:
        return math.nan, math.nan
    p, square = hits / n, z * z / n
    half = z * math.sqrt(p * (1 - p) / n + square / (4 * n))
    low, high = ((p + square / 2 + side) / (1 + square) for side in (-half, half))
    return max(0.0, low), min(1.0, high)  # rounding leaves [0, 1] at no hit and at all of them


# -- two samples --------------------------------------------------------------------------------
def paired(a: Values, b: Values, level: float = 0.95, seed: int = 0) -> Paired:
    """``a - b`` over seeds in the same order: mean difference with t interval, two-sided sign-flip p value.

    >>> paired([0.8, 0.81, 0.83], [0.5, 0.55, 0.6]).clear
    True
    """
    x, y = _checked(a, "paired"), _checked(b, "paired")
    if len(x) != len(y):
        raise InputError("a paired comparison needs equally many values", found=f"{len(x)} and {len(y)}")
    d = x - y
    return Paired(mean(d, level), _sign_flip(d, seed), int((d > 0).sum()))


def _sign_flip(d: Floats, seed: int) -> float:
    n = len(d)
    if n <= EXACT_PAIRS:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        signs = 1.0 - 2.0 * bits
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(10_000, n))
        extra = 1  # the observed pattern counts as one of the draws
    reached = int((np.abs(signs @ d) >= abs(d.sum()) - 1e-12 * np.abs(d).sum()).sum())
    return (reached + extra) / (len(signs) + extra)


def probability_of_improvement(a: Values, b: Values, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """P(a run of ``a`` beats a run of ``b``), ties count half; mean over columns, stratified bootstrap.

    >>> probability_of_improvement([3.0, 4.0], [1.0, 2.0]).value
    1.0
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    x = _checked(x, "probability_of_improvement", dims=2 if x.ndim == 2 else 1).reshape(len(x), -1)
    y = _checked(y, "probability_of_improvement", dims=2 if y.ndim == 2 else 1).reshape(len(y), -1)
    if x.shape[1] != y.shape[1]:
        raise InputError("both need the same protocols", found=f"{x.shape[1]} and {y.shape[1]} columns")

    def chance(p: Floats, q: Floats) -> float:
        greater = (p[:, None] > q[None]) + 0.5 * (p[:, None] == q[None])
        return float(greater.mean())

    draw = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        p = np.take_along_axis(x, draw.integers(len(x), size=x.shape), axis=0)
        q = np.take_along_axis(y, draw.integers(len(y), size=y.shape), axis=0)
        values.append(chance(p, q))
    lo, hi = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(chance(x, y), float(lo), float(hi), min(len(x), len(y)))


def performance_profile(
    scores: Values, thresholds: Values, *, level: float = 0.95, seed: int = 0
) -> list[Estimate]:
    """Share of all runs that score above each threshold, with stratified bootstrap intervals, pointwise.

    Args:
        scores: (runs,) of one protocol, or (runs, protocols). thresholds: (k,).

    Source: Agarwal et al. 2021, run-score distributions.

    >>> [e.value for e in performance_profile([0.2, 0.4, 0.6, 0.8], [0.1, 0.5])]
    [1.0, 0.5]
    """
    x = np.asarray(scores, dtype=np.float64)
    x = _checked(x, "performance_profile", dims=2 if x.ndim == 2 else 1)
    return [
        bootstrap(x, lambda s, t=float(t): float((s > t).mean()), level=level, seed=seed)
        for t in _checked(thresholds, "performance_profile")
    ]


# -- what is kept of earlier tasks -----------------------------------------------------------------
def area_of_forgetting(ends: Values, later: Values) -> float:
    """Mean over earlier tasks of what each showed when it ended minus what it shows later, in the unit of the values.

    Negative where later tasks helped earlier ones.

    Args:
        ends: (k,) of each earlier task at its end. later: (k,) of the same tasks after the run, or (looks, k) after
            several tasks: then the mean over all looks, the area under the curve of forgetting.

    >>> round(area_of_forgetting([0.9, 0.8], [0.5, 0.8]), 6)
    0.2
    """
    a = _checked(ends, "area_of_forgetting")
    b = np.asarray(later, dtype=np.float64)
    b = _checked(b, "area_of_forgetting", dims=2 if b.ndim == 2 else 1)
    if b.shape[-1] != len(a):
        raise InputError("both sides need the same tasks", found=f"{len(a)} and {b.shape[-1]}")
    return float((a - b).mean())


# -- curves over tasks --------------------------------------------------------------------------
def final_tenth(curve: Values) -> float:
    """Mean over the last tenth of the tasks, at least one.

    >>> final_tenth([0.9] * 90 + [0.5] * 10)
    0.5
    """
    x = _checked(curve, "final_tenth")
    return float(x[-max(1, len(x) // 10) :].mean())


def area(curve: Values) -> float:
    """Area under the curve over tasks, per task: the mean, in the unit of the values."""
    return float(_checked(curve, "area").mean())


def smoothed(curve: Values) -> Floats:
    """Running mean over a tenth of the tasks (only full windows)."""
    x = _checked(curve, "smoothed")
    width = max(1, len(x) // 10)
    return np.convolve(x, np.full(width, 1.0 / width), mode="valid")


def loss_from_peak(curve: Values) -> float:
    """How far the last tenth lies below the best tenth-long stretch: 0 where the end is the best.

    A maximum over noisy windows is biased upwards, so a flat noisy curve shows a small loss.

    >>> round(loss_from_peak([0.8] * 50 + [0.5] * 50), 6)
    0.3
    """
    return float(smoothed(curve).max() - final_tenth(curve))


def loss_from_reference(curve: Values, reference: Values) -> float:
    """How far the last tenth lies below the reference's; negative where it lies above.

    >>> round(loss_from_reference([0.5] * 10, [0.8] * 10), 6)
    0.3
    """
    if len(curve) != len(reference):
        raise InputError("both curves need the same tasks", found=f"{len(curve)} and {len(reference)}")
    return final_tenth(reference) - final_tenth(curve)


# -- when ------------------------------------------------------------------------------------------
def onset(
    curves: Values, reference: Values, *, margin: float = 0.05, level: float = 0.95, seed: int = 0
) -> Estimate | None:
    """The first task from which a curve stays below the reference by more than a margin, to the end.

    Of d_t = mean over runs of curve - reference, each task standing for the mean of the coming twentieth of the
    tasks (two at least), so a sharp fall is dated up to a twentieth early. Only full windows count: a fall that
    begins within the last twentieth has not been seen for long enough to be one. The interval is that of a bootstrap
    over runs in which a course that never falls counts as the number of tasks.

    Args:
        curves, reference: (runs, tasks), runs of equal seed in the same order.

    Returns:
        The task, counted from 0, or None where it does not come.

    >>> fresh = [[0.9] * 40] * 3
    >>> worn = [[0.9] * 20 + [0.7] * 20] * 3
    >>> onset(worn, fresh).value  # tasks 19 and 20 together lie 0.1 below
    19.0
    """
    x, y = (_checked(v, "onset", 2) for v in (curves, reference))
    if x.shape != y.shape:
        raise InputError("onset needs as many runs and tasks on both sides", found=f"{x.shape} and {y.shape}")
    d = x - y
    first = _first_below(d.mean(0), margin)
    if first == d.shape[1]:
        return None
    if len(d) == 1:
        return Estimate(float(first), math.nan, math.nan, 1)
    draw = np.random.default_rng(seed)
    found = [_first_below(d[draw.integers(len(d), size=len(d))].mean(0), margin) for _ in range(RESAMPLES)]
    # values that occurred: between a task and "never" there is nothing
    lo = np.quantile(found, 0.5 - level / 2, method="lower")
    hi = np.quantile(found, 0.5 + level / 2, method="higher")
    return Estimate(float(first), float(lo), float(hi), len(d))


def _first_below(d: Floats, margin: float) -> int:
    """The first index from which the smoothed course stays below -margin; its length where there is none."""
    width = min(max(2, len(d) // 20), len(d))
    sums = np.cumsum(np.r_[0.0, d])
    means = (sums[width:] - sums[:-width]) / width  # of the coming ``width`` tasks
    above = np.flatnonzero(means >= -margin)
    first = int(above[-1]) + 1 if len(above) else 0
    return first if first < len(means) else len(d)
