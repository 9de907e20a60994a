"""One statistic of the network against the same statistic of its fresh twins, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from supple.diagnose.thresholds import Threshold
from supple.diagnose.types import Evidence
from supple.status import Status

Z = 1.96


@dataclass(frozen=True)
class Comparison:
    """``statistic`` in ``lo``..``hi`` is the excess or the ratio that is held against the threshold."""

    evidence: Evidence
    statistic: float
    lo: float
    hi: float
    status: Status
    reason: str = ""

    @property
    def usable(self) -> bool:
        return self.status in (Status.PRESENT, Status.ABSENT, Status.INCONCLUSIVE)


def compare(
    name: str,
    value: float,
    twins: Sequence[float],
    threshold: Threshold,
    *,
    error: float = 0.0,
    layer: str = "*",
    samples: int = 0,
    note: str = "",
    decides: bool = True,
) -> Comparison:
    """Hold one value against those of the twins.

    ``error`` is the standard error of the value itself (probe samples, units). The spread between twins
    enters in full, not divided by their number: the network's own initialisation was one such draw.
    """
    known = [t for t in twins if math.isfinite(t)]
    if math.isnan(value) or not known:
        why = "not measured here" if math.isnan(value) else "not measured on the twin"
        empty = Evidence(name, value, samples=samples, layer=layer, note=why, decides=decides)
        return Comparison(empty, math.nan, math.nan, math.nan, Status.NOT_MEASURED, why)
    reference = fmean(known)
    spread = stdev(known) if len(known) > 2 else 0.0
    if threshold.form == "ratio":
        statistic, lo, hi = _ratio(value, reference, spread, error, threshold.spread)
        limit, bounds = threshold.value * reference, (lo * reference, hi * reference)
    else:
        half = Z * math.hypot(max(spread, threshold.spread), error)
        statistic, lo, hi = value - reference, value - reference - half, value - reference + half
        limit, bounds = threshold.value + reference, (value - half, value + half)
    evidence = Evidence(name, value, *bounds, reference, limit, samples, note, layer, decides)
    if math.isnan(statistic):
        return Comparison(evidence, statistic, lo, hi, Status.INVALID, "the twin shows zero")
    return Comparison(evidence, statistic, lo, hi, _judge(lo, hi, threshold))


def _ratio(
    value: float, reference: float, spread: float, error: float, least: float
) -> tuple[float, float, float]:
    """value / reference with an interval that is symmetric in the logarithm: ratios are never negative."""
    if reference <= 0:
        return math.nan, math.nan, math.nan
    relative = math.hypot(max(spread / reference, least), error / reference)
    ratio = value / reference
    return ratio, ratio * math.exp(-Z * relative), ratio * math.exp(Z * relative)


def _judge(lo: float, hi: float, threshold: Threshold) -> Status:
    if lo <= threshold.value <= hi:
        return Status.INCONCLUSIVE
    return Status.PRESENT if (lo > threshold.value) is threshold.above else Status.ABSENT


def all_of(*statuses: Status) -> Status:
    """Evidence that must agree: present only if all are, absent as soon as one is."""
    if Status.ABSENT in statuses:
        return Status.ABSENT
    for status in (Status.INVALID, Status.NOT_MEASURED, Status.INCONCLUSIVE):
        if status in statuses:
            return status
    return Status.PRESENT


def agreeing(*pairs: tuple[Comparison, Threshold]) -> Status:
    """Evidence that must agree, when the spread of few twins leaves one interval wide: present if every statistic
    lies on the ill side and one interval does so as a whole; else as `all_of`.
    """
    ill = all(c.usable and (c.statistic > t.value) is t.above for c, t in pairs)
    if ill and any(c.status is Status.PRESENT for c, _ in pairs):
        return Status.PRESENT
    return all_of(*(c.status for c, _ in pairs))
