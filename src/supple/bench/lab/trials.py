"""Is a trial worth following? What `supple.trial` puts first, and what the table would, against a full run of all.

Every candidate of a case (the live lines of its prescription, ContinualBackprop, nothing, a restart) goes on over new
random-label tasks, several sequences of them; its true level is the mean learning score (accuracy above chance, of
each batch before its update) over the last half of the tasks. A choice is right where its level is within 0.02 of
the best one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supple.bench.lab.cases import EVALUATION, Case, cases
from supple.bench.lab.cases import PRESETS as SIZES
from supple.bench.lab.matrix import Court, Length
from supple.bench.lab.run import begin, bench, complete, lines, network
from supple.bench.lab.truth import PATIENCE, RATE
from supple.bench.statistics import wilson
from supple.bench.tables import Cell, Table, markdown
from supple.diagnose.run import run as diagnose
from supple.diagnose.trial import FAMOUS, NOTHING, RESTART, default_candidates, trial
from supple.interventions import Intervention, create

RECORDS = "trials.jsonl"
NEAR = 0.02
SEQUENCE = 1_000  # seeds of the sequences lie this far apart
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Size:
    """How many cases, seconds of a trial, and the length of the full run."""

    cases: int
    budget: float
    sequences: int
    tasks: int
    steps: int


PRESETS: Mapping[str, Size] = {
    "tiny": Size(2, 10.0, 1, 2, 40),
    "small": Size(64, 30.0, 3, 4, 150),
    "day": Size(160, 60.0, 8, 8, 300),
}


def judge(case: Case, size: Size) -> dict[str, Any]:
    """The order of the trial, the first line of the table, and the true level of every candidate."""
    lab = bench(SIZES["small"], case.half)
    net = network(case, lab)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    pair = (lab.x, lab.y)
    report = diagnose(net, pair, F.cross_entropy, reference=case.factory, optimizer=optimizer, budget=0)
    candidates = default_candidates(report.prescription)
    seen = trial(net, optimizer, pair, F.cross_entropy, reference=case.factory, candidates=candidates,
                 budget=size.budget, seed=case.seed)  # fmt: skip
    made = {c.name: c for c in candidates if isinstance(c, Intervention)}
    order = [a.name for a in seen.arms if not a.failed]
    table = next((c.name for c in candidates if isinstance(c, Intervention)), NOTHING)
    return {
        "case": case.name,
        "family": case.family,
        "order": order,
        "scores": {a.name: a.score for a in seen.arms if not a.failed},
        "failed": {a.name: a.failed for a in seen.arms if a.failed},
        "clear": seen.clear,
        "pairs": seen.pairs,
        "steps": seen.steps,
        "table": table,
        "levels": levels(case, size, net, pair, order, made),
    }


def levels(
    case: Case,
    size: Size,
    net: nn.Module,
    pair: tuple[Tensor, Tensor],
    names: Sequence[str],
    made: Mapping[str, Intervention],
) -> dict[str, float]:
    """The true level of every candidate, each on a copy of ``net`` over the same sequences; a run that diverges has
    learned nothing."""
    length = Length(1, size.tasks, size.steps * PATIENCE.get(case.family, 1))
    courts = [
        Court(replace(case, seed=case.seed + SEQUENCE * (1 + i)), length, *pair)
        for i in range(size.sequences)
    ]

    def level(name: str) -> float:
        if name == RESTART:
            return fmean(court.fresh() for court in courts)
        return fmean(court.run(net, remedy(name, made))[0] for court in courts)

    return {name: level(name) for name in names}


def remedy(name: str, made: Mapping[str, Intervention]) -> Intervention | None:
    """The intervention of a candidate; the famous one comes by its name."""
    if name == NOTHING:
        return None
    return made[name] if name in made else create(name)


def run_trials(
    folder: Path, preset: str = "small", *, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Every case of a preset that ``folder`` has not; returns all records in it.

    Raises:
        InputError: an unknown preset.
    """
    size = begin(folder, "trials", preset, PRESETS)
    known = {r["case"] for r in read(folder)}
    chosen = cases("small", EVALUATION)[: size.cases]
    left = {c.name: partial(judge, c, size) for c in chosen if c.name not in known}
    complete(folder / RECORDS, left, say)
    return read(folder)


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder."""
    return lines(folder / RECORDS)


def choices(row: Row, *, restart: bool) -> dict[str, str]:
    """Who would choose what, with or without a restart among the candidates."""
    order = [n for n in row["order"] if restart or n != RESTART]
    table = row["table"] if row["table"] in row["levels"] else NOTHING
    found = {"trial": order[0], "table": table, NOTHING: NOTHING}
    if FAMOUS in row["levels"]:
        found[FAMOUS] = FAMOUS
    return {**found, RESTART: RESTART} if restart else found


def regret(row: Row, name: str, *, restart: bool) -> float:
    """How far a choice stays behind the best candidate."""
    levels = {n: v for n, v in row["levels"].items() if restart or n != RESTART}
    return max(levels.values()) - levels[name]


def summary(rows: Sequence[Row], *, restart: bool) -> dict[str, dict[str, float]]:
    """Chooser -> in how many cases it was right (Wilson's interval, 95 %), and its mean regret."""
    found: dict[str, dict[str, float]] = {}
    for who in ("trial", "table", NOTHING, FAMOUS, *([RESTART] if restart else [])):
        lost = [regret(r, c[who], restart=restart) for r in rows if who in (c := choices(r, restart=restart))]
        right = sum(x <= NEAR for x in lost)
        lo, hi = wilson(right, len(lost))
        found[who] = {"right": right, "n": len(lost), "lo": lo, "hi": hi, "regret": fmean(lost)}
    return found


def render(rows: Sequence[Row]) -> str:
    """Markdown of the tables."""
    return markdown(parts(rows))


def parts(rows: Sequence[Row]) -> list[str | Table]:
    """Who chooses well, and the cases in which the trial did not."""
    told: list[str | Table] = [
        _choices(rows, False, "Among the remedies"), _choices(rows, True, "With a restart among the candidates"),
    ]  # fmt: skip
    clear = [r for r in rows if r["clear"]]
    told.append(f"The trial called its first choice clear in {len(clear)} of {len(rows)} cases.")
    lines = []
    for row in rows:
        mine = choices(row, restart=False)["trial"]
        lost = regret(row, mine, restart=False)
        if lost > NEAR:
            best = max((n for n in row["levels"] if n != RESTART), key=row["levels"].__getitem__)
            lines.append([row["case"], mine, best, Cell(f"{lost:.3f}", value=lost)])
    return [*told, Table("wrong", ("case", "trial", "best remedy", "distance"), lines)] if lines else told


def _choices(rows: Sequence[Row], restart: bool, title: str) -> Table:
    lines = [
        [who, Cell(f"{s['right']}/{s['n']} [{s['lo']:.2f}, {s['hi']:.2f}]",
                   **{k: s[k] for k in ("right", "n", "lo", "hi")}),
         Cell(f"{s['regret']:.3f}", value=s["regret"])]
        for who, s in summary(rows, restart=restart).items()
    ]  # fmt: skip
    return Table(title.lower(), ("choice of", "right", "mean distance to the best"), lines, f"{title}:")
