"""What a scan may conclude: rank collapse and weight growth, against the first round, never from one file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from supple.diagnose.types import Evidence, Finding
from supple.records import Records
from supple.scan.trend import LEVEL, SMALLEST_CHANGE, Trend
from supple.status import Mechanism, Status

ONE_FILE = "a single checkpoint has no earlier round to compare with"
ADVICE = {
    Mechanism.RANK_COLLAPSE: (
        "These matrices lose directions round after round. Restart the next round from an earlier "
        "checkpoint, or train it with SpectralRegularization or L2Init, and scan again; whether learning "
        "suffers is measured by supple.diagnose, not by a rank."
    ),
    Mechanism.WEIGHT_GROWTH: (
        "The largest singular value grows steadily, which shrinks the effective step. "
        "SpectralRegularization or weight decay bounds it."
    ),
}
WATCHES = {
    Mechanism.RANK_COLLAPSE: ("effective_rank", "stable_rank", "sigma_ratio"),
    Mechanism.WEIGHT_GROWTH: ("sigma_max",),
}
#: rank collapse rests on the effective rank; the other two are shown beside it
DECIDES = {"effective_rank", "sigma_max"}


def judge(
    records: Records, series: Sequence[Trend], runs: Sequence[str], skipped: Mapping[str, str]
) -> tuple[Finding, ...]:
    """One finding per mechanism that weights alone can show."""
    invalid = sorted({r.layer for r in records if r.status == Status.INVALID.value})
    return tuple(_finding(m, series, runs, invalid, bool(skipped)) for m in WATCHES)


def _finding(
    mechanism: Mechanism, series: Sequence[Trend], runs: Sequence[str], invalid: list[str], partial: bool
) -> Finding:
    if invalid:
        return Finding(
            mechanism,
            Status.INVALID,
            layers=tuple(invalid),
            reason="NaN or Inf in the weights of these layers",
        )
    if len(runs) < 2:
        return Finding(mechanism, Status.NOT_MEASURED, reason=ONE_FILE if runs else "no checkpoint was read")
    own = [t for t in series if t.instrument in WATCHES[mechanism]]
    deciding = [t for t in own if t.instrument in DECIDES and t.status is not Status.NOT_MEASURED]
    if not deciding:
        return Finding(mechanism, Status.NOT_MEASURED, reason="no matrix was measured in every round")
    for status in (Status.PRESENT, Status.INCONCLUSIVE):
        hit = [t for t in deciding if t.status is status]
        if hit:
            names = tuple(dict.fromkeys(t.name for t in hit))
            present = status is Status.PRESENT
            return Finding(
                mechanism,
                status,
                severity=min(1.0, max(abs(t.change) for t in hit)) if present else None,
                layers=names,
                evidence=tuple(_evidence(t) for t in own if t.name in names),
                advice=ADVICE[mechanism] if present else "Scan again after more rounds.",
                reason=f"{len(names)} of {len(deciding)} matrices change by {SMALLEST_CHANGE:.0%} or more"
                + (", steadily" if present else f"; {hit[0].reason} (needs < {LEVEL})"),
            )
    more = " among those measured" if partial else ""
    return Finding(
        mechanism,
        Status.ABSENT,
        evidence=tuple(_evidence(t) for t in deciding[:1]),
        reason=f"no matrix{more} changes by {SMALLEST_CHANGE:.0%} or more over {len(runs)} rounds",
    )


def _evidence(trend: Trend) -> Evidence:
    return Evidence(
        trend.instrument,
        trend.values[-1],
        reference=trend.values[0],
        threshold=_threshold(trend),
        samples=len(trend.values),
        note=f"change {trend.change:+.1%}, p = {trend.p:.2g} after correction; reference is the first round",
        layer=trend.name,
        decides=trend.instrument in DECIDES,
    )


def _threshold(trend: Trend) -> float:
    sign = -1 if trend.instrument in ("effective_rank", "stable_rank") else 1
    return trend.values[0] * (1 + sign * SMALLEST_CHANGE) if math.isfinite(trend.change) else math.nan
