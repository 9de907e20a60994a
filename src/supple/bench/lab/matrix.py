"""Mechanism × intervention: what each remedy gives back on networks whose illness is known, and at what cost.

A network of the lab, ill by construction or by wear, goes on over fresh random-label tasks with an intervention
attached. Its level is the mean learning score (accuracy above chance, of each batch before its update) over the last
half of the tasks; recovered = (level - level of no intervention) / (level of fresh networks - level of no
intervention). A remedy that only prevents may recover nothing here: that is part of the answer.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from supple.bench import methods
from supple.bench.lab.cases import EVALUATION, PRESETS, Case
from supple.bench.lab.run import begin, bench, complete, lines, network
from supple.bench.lab.truth import RATE, reference
from supple.bench.statistics import Estimate, mean
from supple.bench.tables import Cell, Table, markdown
from supple.diagnose.probe_tasks import ProbeTask, learn, read_kind
from supple.errors import InputError
from supple.interventions import Intervention, create

RECORDS = "matrix.jsonl"
NOTHING, FRESH = "nothing", "fresh"
#: methods of `supple.bench.methods` by name, with the settings they have there
ARMS = (
    "regrama", "redo", "cbp", "spectral", "parseval", "l2init", "cchain", "shrink_perturb", "spectral_regrama",
)  # fmt: skip
#: row -> the network of a seed
ORIGINS: Mapping[str, Callable[[int], Case]] = {
    "healthy": lambda s: Case(EVALUATION, "mlp", seed=s),
    "dead units, built": lambda s: Case(EVALUATION, "mlp", ills=(("dead", 0.7),), seed=s),
    "dead units, worn": lambda s: Case(EVALUATION, "mlp", wear="random-labels", tasks=10, seed=s),
    "dead units and growth, worn": lambda s: Case(EVALUATION, "mlp", wear="permuted", tasks=60, seed=s),
    "rank collapse, built": lambda s: Case(EVALUATION, "mlp", ills=(("rank", 0.35),), seed=s),
    "rank collapse, built, leaky": lambda s: Case(EVALUATION, "mlp-leaky", ills=(("rank", 0.35),), seed=s),
    "rank collapse, worn, leaky": lambda s: Case(
        EVALUATION, "mlp-leaky", wear="decayed-pairs", tasks=20, seed=s
    ),
    "NTK degeneration, built": lambda s: Case(EVALUATION, "mlp", ills=(("common", 7.0),), seed=s),
    "NTK degeneration, built, leaky": lambda s: Case(
        EVALUATION, "mlp-leaky", ills=(("common", 7.0),), seed=s
    ),
    "ordered phase, built, deep tanh": lambda s: Case(
        EVALUATION, "mlp-tanh-deep", ills=(("ordered", 0.5),), seed=s
    ),
    "dead units and rank, built": lambda s: Case(
        EVALUATION, "mlp", ills=(("dead", 0.5), ("rank", 0.2)), seed=s
    ),
}


@dataclass(frozen=True)
class Length:
    """Seeds, tasks and steps of a preset."""

    seeds: int
    tasks: int
    steps: int


LENGTHS: Mapping[str, Length] = {
    "tiny": Length(1, 2, 40),
    "small": Length(3, 4, 200),
    "day": Length(10, 10, 400),
}


def remedy(name: str, seed: int) -> Intervention:
    """The intervention of an arm: a bench method's, or FIRE."""
    if name == "fire":
        return create("FIRE")
    method = methods.get(name)
    found = method.create(method.settings, seed)
    if found is None:
        raise InputError("this method has no intervention", found=name)
    return found


class Court:
    """Runs the arms of one network over the same tasks in the same order of batches."""

    def __init__(self, case: Case, length: Length, x: torch.Tensor, y: torch.Tensor) -> None:
        self.case, self.length = case, length
        self.kind = read_kind(torch.zeros(len(y), 10), y)
        self.tasks = [
            ProbeTask.draw((x, y), self.kind, F.cross_entropy, 70_001 + 101 * case.seed + i)
            for i in range(length.tasks)
        ]
        self.x = x

    def run(self, net: nn.Module, intervention: Intervention | None) -> tuple[float, float]:
        """(level, CPU seconds a step)."""
        pupil = copy.deepcopy(net)
        optimizer = torch.optim.Adam(pupil.parameters(), lr=RATE)
        handle = None if intervention is None else intervention.attach(pupil, optimizer, inputs=self.x[:32])
        scores, begun = [], time.process_time()
        for task in self.tasks:
            if handle is not None:
                handle.task(f"task-{len(scores)}")
            scores.append(fmean(learn(pupil, task, self.length.steps, [optimizer], centred=False)))
        seconds = (time.process_time() - begun) / (self.length.steps * len(self.tasks))
        return self._level(scores), seconds

    def fresh(self) -> float:
        """The level of a new network for every task."""
        scores = []
        for i, task in enumerate(self.tasks):
            pupil = reference(self.case, 1000 + i)
            optimizer = torch.optim.Adam(pupil.parameters(), lr=RATE)
            scores.append(fmean(learn(pupil, task, self.length.steps, [optimizer], centred=False)))
        return self._level(scores)

    def _level(self, scores: Sequence[float]) -> float:
        """Mean over the last half of the tasks; a course that diverged learned nothing."""
        last = scores[len(scores) // 2 :]
        return fmean(s if s == s else 0.0 for s in last)


def try_all(origin: str, seed: int, length: Length) -> dict[str, Any]:
    """All arms on one network."""
    case = ORIGINS[origin](1000 + seed)
    lab = bench(PRESETS["tiny"], case.half)
    net = network(case, lab)
    court = Court(case, length, lab.x, lab.y)
    level, seconds = court.run(net, None)
    levels, costs = {NOTHING: level, FRESH: court.fresh()}, {NOTHING: 1.0}
    for arm in (*ARMS, "fire"):
        levels[arm], took = court.run(net, remedy(arm, seed))
        costs[arm] = took / seconds
    return {"origin": origin, "seed": seed, "levels": levels, "costs": costs}


def run_matrix(
    folder: Path, preset: str = "small", *, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Every origin and seed of a preset that ``folder`` has not; returns all records in it.

    Raises:
        InputError: an unknown preset.
    """
    length = begin(folder, "matrix", preset, LENGTHS)
    known = {(r["origin"], r["seed"]) for r in read(folder)}
    left = {
        f"{origin}, seed {seed}": partial(try_all, origin, seed, length)
        for seed in range(length.seeds)
        for origin in ORIGINS
        if (origin, seed) not in known
    }
    complete(folder / RECORDS, left, say)
    return read(folder)


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder."""
    return lines(folder / RECORDS)


def recovered(record: Mapping[str, Any], arm: str) -> float:
    """Share of the lost learning that an arm gives back; the gap of a healthy network is no loss: NaN."""
    levels = record["levels"]
    gap = levels[FRESH] - levels[NOTHING]
    return (levels[arm] - levels[NOTHING]) / gap if gap > 0.02 else float("nan")


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Estimate]]:
    """Origin -> arm -> level over seeds."""
    found: dict[str, dict[str, Estimate]] = {}
    for origin in dict.fromkeys(r["origin"] for r in rows):
        mine = [r for r in rows if r["origin"] == origin]
        found[origin] = {arm: mean([r["levels"][arm] for r in mine]) for arm in mine[0]["levels"]}
    return found


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of the table."""
    return markdown(parts(rows))


def parts(rows: Sequence[Mapping[str, Any]]) -> list[str | Table]:
    """One table: levels with intervals, recovered shares, cost."""
    levels = table(rows)
    arms = list(next(iter(levels.values())))
    lines = [
        [origin, *(_cell(rows, origin, arm, found[arm]) for arm in arms)] for origin, found in levels.items()
    ]
    costs = [fmean(r["costs"][a] for r in rows) if a in rows[0]["costs"] else float("nan") for a in arms]
    cost = ["–" if c != c else Cell(f"{c:.2f}", value=c) for c in costs]
    return [Table("levels", ("network", *arms), [*lines, ["CPU time of a step", *cost]])]


def _cell(rows: Sequence[Mapping[str, Any]], origin: str, arm: str, level: Estimate) -> Cell:
    cell = Cell.of(level, ".2f")
    shares = [recovered(r, arm) for r in rows if r["origin"] == origin]
    if arm in (NOTHING, FRESH) or any(s != s for s in shares):
        return cell
    return cell.extended(f", {fmean(shares):.0%}", recovered=fmean(shares))
