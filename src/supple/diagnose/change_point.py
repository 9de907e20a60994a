"""Did a series change suddenly, gradually, or not at all? One step against one straight line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FEWEST = 8  # points; with fewer even a clean step may be matched by chance once in twenty
SHUFFLES = 999
LEVEL = 0.05
SUDDEN, GRADUAL, NONE = "sudden", "gradual", "none"


@dataclass(frozen=True)
class Change:
    """``kind`` is "sudden", "gradual" or "none"; ``at``: the first point after a sudden change.

    ``p``: share of shuffled series whose best step (or line) explains as much; ``before``, ``after``: means of the
    two sides of the step, or the ends of the line.
    """

    kind: str
    at: int
    p: float
    before: float
    after: float


def change_point(values: Sequence[float], seed: int = 0) -> Change:
    """Least squares of a step at every place and of a line; the better of the two, if shuffling does not match it.

    Step: Σ (v - mean of its side)², at least two points on each side. Line: Σ (v - a - b t)². The test is a
    permutation test of the explained sum of squares, 999 shuffles, keyed by ``seed``. A course with both a step
    and a trend gets the name of what explains more of it.

    Args:
        values: finite numbers in order of time, at least eight.

    >>> change_point([1.0, 1.1, 0.9, 1.0, 5.0, 5.1, 4.9, 5.0]).at
    4
    >>> change_point([0.0, 1.0, 2.0, 3.1, 4.0, 5.0, 6.1, 7.0]).kind
    'gradual'
    """
    v = np.asarray(values, dtype=np.float64)
    if len(v) < FEWEST or not np.isfinite(v).all():
        raise ValueError(f"change_point needs {FEWEST} or more finite values; found: {len(v)} values")
    total = float(((v - v.mean()) ** 2).sum())
    if total <= 1e-24 * max(1.0, float((v**2).sum())):
        return Change(NONE, 0, 1.0, float(v[0]), float(v[-1]))
    at, step, line = _best(v)
    draw = np.random.default_rng(seed)
    other = [max(_best(draw.permutation(v))[1:]) for _ in range(SHUFFLES)]
    p = (1 + sum(o >= max(step, line) - 1e-12 * total for o in other)) / (1 + SHUFFLES)
    if p > LEVEL:
        return Change(NONE, 0, p, float(v[0]), float(v[-1]))
    if step > line:
        return Change(SUDDEN, at, p, float(v[:at].mean()), float(v[at:].mean()))
    slope = _slope(v)
    middle = float(v.mean())
    half = slope * (len(v) - 1) / 2
    return Change(GRADUAL, 0, p, middle - half, middle + half)


def _best(v: Floats) -> tuple[int, float, float]:
    """(place of the best step, what it explains, what a line explains), as sums of squares."""
    n = len(v)
    k = np.arange(2, n - 1)
    left = np.cumsum(v)[k - 1]
    difference = left / k - (v.sum() - left) / (n - k)
    explained = k * (n - k) / n * difference**2
    best = int(explained.argmax())
    t = np.arange(n) - (n - 1) / 2
    return int(k[best]), float(explained[best]), float(_slope(v) ** 2 * (t**2).sum())


def _slope(v: Floats) -> float:
    t = np.arange(len(v)) - (len(v) - 1) / 2
    return float(t @ v / (t @ t))
