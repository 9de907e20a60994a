"""All protocols of a folder together: interquartile mean, performance profile, probability of improvement.

After Agarwal et al. 2021 ("Deep RL at the edge of the statistical precipice"): runs of several protocols are put on
one scale, here the level of the fresh reference, and every interval resamples seeds within each protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from supple.bench import statistics
from supple.bench.protocols import is_control
from supple.bench.rows import curve
from supple.bench.statistics import Estimate
from supple.bench.summary import REFERENCE
from supple.store import StoredRun

PLAIN = "plain"
#: shares of the fresh level at which profiles are read
THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(4, 27))

#: (protocol, method) -> seed -> run, as `supple.bench.summary.stored_runs` gives it
Runs = Mapping[tuple[str, str], Mapping[int, StoredRun]]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Overall:
    """Methods over several protocols. ``scores`` is (seeds, protocols) by method; 1 is the fresh level.

    ``left_out``: protocols, methods and seeds that could not be put beside the others, each with the reason.
    """

    protocols: tuple[str, ...]
    scores: Mapping[str, Floats]
    left_out: Mapping[str, str]

    def middle(self, method: str) -> Estimate:
        """Interquartile mean over all runs of a method, stratified bootstrap."""
        return statistics.bootstrap(self.scores[method])

    def better(self, method: str, other: str = PLAIN) -> Estimate | None:
        """Probability that a run of ``method`` beats one of ``other``; None without the other, or of itself."""
        if method == other or other not in self.scores:
            return None
        return statistics.probability_of_improvement(self.scores[method], self.scores[other])

    def profile(self, method: str) -> list[Estimate]:
        """Share of the runs above each of `THRESHOLDS`."""
        return statistics.performance_profile(self.scores[method], THRESHOLDS)

    def to_dict(self) -> dict[str, Any]:
        """Plain types: per method the number of runs, IQM and probability of improvement on the plain network."""

        def numbers(e: Estimate | None) -> list[float] | None:
            return None if e is None else [e.value, e.lo, e.hi]

        methods = {
            m: {
                "runs": int(s.size),
                "iqm": numbers(self.middle(m)),
                "better_than_plain": numbers(self.better(m)),
            }
            for m, s in self.scores.items()
        }
        return {"protocols": list(self.protocols), "methods": methods, "left_out": dict(self.left_out)}


def overall(runs: Runs) -> Overall | None:
    """Methods that all protocols share, best interquartile mean first; None where fewer than two can be compared.

    The score of a run is the mean of its last tenth over the mean of the fresh reference's in the same protocol. A
    protocol without that reference, or whose levels are not all above 0 (returns that are costs), has no such scale; an
    i.i.d. control has no tasks, and is no protocol of its own. Of every cell the seeds that all cells have count, and
    two at least.
    """
    left_out: dict[str, str] = {}
    levels: dict[str, dict[str, dict[int, float]]] = {}
    for (protocol, method), by_seed in runs.items():
        found = {s: statistics.final_tenth(curve(r.records, "online")) for s, r in by_seed.items()}
        levels.setdefault(protocol, {})[method] = found
    for protocol in list(levels):
        if reason := "the i.i.d. control" * is_control(protocol) or _no_scale(levels[protocol]):
            left_out[protocol] = reason
            del levels[protocol]
    if len(levels) < 2:
        return None
    shared = set.intersection(*(set(by_method) for by_method in levels.values()))
    for method in sorted({m for by_method in levels.values() for m in by_method} - shared):
        left_out[method] = "not run on every protocol"
    seeds = sorted(set.intersection(*(set(levels[p][m]) for p in levels for m in shared)))
    if len(seeds) < 2:
        return None
    if extra := sorted({s for p in levels for m in shared for s in levels[p][m]} - set(seeds)):
        name = f"seed{'s' * (len(extra) > 1)} {', '.join(map(str, extra))}"
        left_out[name] = "not run by every method on every protocol"
    scale = {p: float(np.mean([levels[p][REFERENCE][s] for s in seeds])) for p in levels}
    scores = {m: np.array([[levels[p][m][s] / scale[p] for p in levels] for s in seeds]) for m in shared}
    order = sorted(scores, key=lambda m: (-statistics.interquartile_mean(scores[m]), m))
    return Overall(tuple(levels), {m: scores[m] for m in order}, left_out)


def _no_scale(by_method: Mapping[str, Mapping[int, float]]) -> str:
    """Why the methods of a protocol cannot be put on the scale of its fresh reference; empty where they can."""
    if REFERENCE not in by_method:
        return "no fresh reference to measure against"
    values = [v for found in by_method.values() for v in found.values()]
    if min(values) <= 0:
        return "levels that are not all above 0 have no share of the fresh level"
    return ""
