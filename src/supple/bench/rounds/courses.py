"""What a page draws of the rounds: the loss of each round as it is learned, and the fingerprints after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from supple.bench.rounds.read import Record
from supple.diagnose.types import number
from supple.report import Course

#: instrument of the page -> where it is in a round's row
LOOKS = {
    "dead": lambda row: row["probe"].get("dead"),
    "effective_rank (relative)": lambda row: fmean(row.get("ranks_adapted", row["ranks"]).values()),
    "churn (relative)": lambda row: row["probe"].get("churn_relative"),
}  # fmt: skip


def courses(records: Sequence[Record]) -> dict[str, Course]:
    """Arm -> its course: mean loss of every round by seed, dead units, effective rank and churn after each."""
    by_arm: dict[str, list[Record]] = {}
    for record in records:
        if record["rounds"]:
            by_arm.setdefault(record["arm"], []).append(record)
    return {arm: _course(arm, group) for arm, group in by_arm.items()}


def _course(arm: str, group: Sequence[Record]) -> Course:
    online = [[fmean(number(b) for b in row["blocks"]) for row in r["rounds"]] for r in group]
    looks: dict[str, Any] = {}
    if all("probe" in row and row["ranks"] for r in group for row in r["rounds"]):
        turns = min(len(r["rounds"]) for r in group)
        for name, read in LOOKS.items():
            values = [[number(read(row)) for row in r["rounds"][:turns]] for r in group]
            looks[name] = (list(range(1, turns + 1)), values)
    return Course(arm, online, _told(looks))


def _told(looks: Mapping[str, Any]) -> dict[str, Any]:
    """Without what has no number in any round."""
    return {n: (x, seeds) for n, (x, seeds) in looks.items() if any(v == v for s in seeds for v in s)}
