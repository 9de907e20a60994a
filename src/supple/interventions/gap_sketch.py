"""Quantiles of many streams of positive integers in little memory: one log-spaced histogram per unit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_RATIO = 1.02  # of neighbouring edges: a quantile is up to 2 % below the exact one


class GapSketch:
    """Counts of the values 1 .. longest for each of ``units`` streams; others are not recorded.

    A value is counted at the largest edge that does not exceed it. Every integer below 50 is an edge.

    >>> sketch = GapSketch(1, 20_000)
    >>> for gap in (3, 3, 8, 1000):
    ...     sketch.record(np.array([True]), np.array([gap]))
    >>> sketch.quantile(0.5), sketch.quantile(0.75), sketch.counts.shape
    (array([3.]), array([8.]), (1, 352))
    """

    def __init__(self, units: int, longest: int) -> None:
        grid = _RATIO ** np.arange(np.ceil(np.log(max(longest, 2)) / np.log(_RATIO)) + 1)
        edges = np.unique(np.concatenate([np.arange(1.0, 51.0), np.floor(grid)])).astype(np.float64)
        self.edges: npt.NDArray[np.float64] = edges[edges <= longest]
        self.longest = longest
        self.counts: npt.NDArray[np.int32] = np.zeros((units, len(self.edges)), dtype=np.int32)

    def record(self, which: npt.NDArray[np.bool_], values: npt.NDArray[np.int64]) -> None:
        """Count ``values[i]`` of each unit i with ``which[i]``."""
        units = np.flatnonzero(which & (values >= 1) & (values <= self.longest))
        bins = np.searchsorted(self.edges, values[units], side="right") - 1
        self.counts[units, bins] += 1  # each unit occurs once

    def quantile(self, share: float) -> npt.NDArray[np.float64]:
        """(U,) the smallest edge up to which at least this share of a unit's values lies; 1 without values."""
        cumulated = np.cumsum(self.counts, axis=1)
        enough = cumulated >= share * np.maximum(cumulated[:, -1:], 1)
        return self.edges[np.argmax(enough, axis=1)]

    def clear(self) -> None:
        self.counts[:] = 0
