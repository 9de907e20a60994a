"""Round against round: which matrices lose rank steadily, and how sure that is.

For every matrix the pairs of rounds that move the wrong way are counted (Kendall's inversions). The exact
one-sided p value under exchangeable rounds comes from the number of orders with as few inversions; it is
multiplied by the number of matrices (Bonferroni). Training breaks exchangeability in many ways, so a small p
says *drift in one direction*, and the size of the change says whether it matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from supple.records import MEASURED, Record, Records
from supple.scan.matrices import Skipped
from supple.status import Status

#: a change of the whole series that matters, as a share of the first value
SMALLEST_CHANGE = 0.03
LEVEL = 0.05
#: instrument, variant, and the direction of accumulating debt
WATCHED = (
    ("effective_rank", "", -1),
    ("stable_rank", "", -1),
    ("sigma_ratio", "", +1),
    ("sigma_max", "", +1),
)


@dataclass(frozen=True)
class Trend:
    """One quantity of one matrix over the rounds; ``p`` is one-sided, corrected for the matrices."""

    layer: str
    part: str
    instrument: str
    values: tuple[float, ...]
    change: float
    monotone: bool
    p: float
    status: Status
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.layer} [{self.part}]" if self.part else self.layer


def kendall_p(values: Sequence[float], direction: int) -> float:
    """P(S >= observed) in the given direction when all orders of the values are equally likely.

    Mann 1945; exact by counting inversions, ties counted against.

    >>> kendall_p([5, 4, 3, 2, 1], -1) == 1 / 120
    True
    >>> kendall_p([1, 1, 1], -1)
    1.0
    """
    n = len(values)
    wrong = sum(
        direction * (values[j] - values[i]) <= 0 for i in range(n) for j in range(i + 1, n)
    )  # pairs that do not move in the direction
    counts = [1]  # counts[k]: permutations of m items with k inversions, built up to m = n
    for m in range(2, n + 1):
        grown = [0] * (len(counts) + m - 1)
        for k, count in enumerate(counts):
            for extra in range(m):
                grown[k + extra] += count
        counts = grown
    return sum(counts[: wrong + 1]) / math.factorial(n)


def trends(records: Records, runs: Sequence[str]) -> list[Trend]:
    """Every watched quantity of every matrix that exists in all rounds, first the ones that say most."""
    table: dict[tuple[str, str, str], dict[str, Record]] = {}
    invalid: set[tuple[str, str]] = set()
    for r in records:
        if r.status == Status.INVALID.value:
            invalid.add((r.layer, r.part))
        if r.status == MEASURED and (r.instrument, r.variant) in {(i, v) for i, v, _ in WATCHED}:
            table.setdefault((r.layer, r.part, r.instrument), {})[r.run] = r
    whole = {k: v for k, v in table.items() if len(v) == len(runs) and k[:2] not in invalid}
    count = max(1, len({key[:2] for key in whole}))
    found = []
    for (layer, part, instrument), by_run in whole.items():
        direction = next(d for i, _, d in WATCHED if i == instrument)
        rows = [by_run[r] for r in runs]
        errors = [0.0 if math.isnan(r.error) else r.error for r in rows]
        found.append(judge(layer, part, instrument, [r.value for r in rows], direction, count, max(errors)))
    rank = {Status.PRESENT: 0, Status.INCONCLUSIVE: 1, Status.ABSENT: 2, Status.NOT_MEASURED: 3}
    return sorted(found, key=lambda t: (rank[t.status], -abs(t.change), t.name, t.instrument))


def not_compared(records: Records, runs: Sequence[str]) -> list[Skipped]:
    """Matrices that some rounds have and others have not, each with the rounds in which it is missing."""
    there: dict[str, set[str]] = {}
    for r in records:
        there.setdefault(f"{r.layer} [{r.part}]" if r.part else r.layer, set()).add(r.run)
    left = []
    for name, rounds in there.items():
        missing = [r for r in runs if r not in rounds]
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        if missing:
            left.append(Skipped(name, f"not measured in {', '.join(missing[:3])}{more}"))
    return left


def judge(
    layer: str,
    part: str,
    instrument: str,
    values: Sequence[float],
    direction: int,
    matrices: int,
    error: float = 0.0,
) -> Trend:
    """The verdict on one series: steady and large and unlikely by chance, or the reason why not.

    ``error`` is the largest relative error of the values where they are estimates.
    """
    first, last = values[0], values[-1]
    if first == 0:
        reason = "zero in the first round: no relative change"
        return Trend(
            layer, part, instrument, tuple(values), math.nan, False, 1.0, Status.NOT_MEASURED, reason
        )
    change = (last - first) / abs(first)
    monotone = all(direction * (b - a) > 0 for a, b in pairwise(values))
    p = min(1.0, kendall_p(values, direction) * matrices)
    large = direction * change >= SMALLEST_CHANGE
    if not large:
        status, reason = Status.ABSENT, f"changes by less than {SMALLEST_CHANGE:.0%} towards debt"
    elif abs(change) <= 2 * error:
        status, reason = (
            Status.INCONCLUSIVE,
            f"the estimates are good to {error:.1%} each: measure it exactly",
        )
    elif p >= LEVEL:
        status = Status.INCONCLUSIVE
        reason = f"{len(values)} rounds and {matrices} matrices leave p = {p:.2g}"
    else:
        status, reason = Status.PRESENT, "steady over the rounds"
    return Trend(layer, part, instrument, tuple(values), change, monotone, p, status, reason)
