"""Which instrument foretells how well the next task will be learned?

For every run: Spearman's rank correlation between the value of an instrument at the end of task t and the online
metric of task t + 1. An instrument that only rises with time correlates with a level that only falls with time; so the
same is computed within methods that hold their level, and pooled over methods, where time alone explains nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from supple.bench import protocols
from supple.bench.rows import curve
from supple.bench.spec import RunSpec
from supple.bench.statistics import Estimate, bootstrap
from supple.bench.studies.base import finished, short
from supple.diagnose.types import plain
from supple.store import StoredRun

#: protocols that wear an MLP
WEAR = ("digits-random-labels", "digits-permuted")
METHODS = ("plain", "l2init", "regrama", "spectral", "layernorm")
POINTS = 24  # looks at each run, about
FEWEST = 8  # points of a run below which no correlation is made
Series = list[tuple[float, float]]


@dataclass(frozen=True)
class Foresight:
    """One instrument: correlations within streams (mean over runs), and across methods (mean over tasks).

    ``course``: protocol -> its value at the first and the last look of the plain network, means over seeds.
    """

    instrument: str
    within: Estimate
    across: Estimate | None
    by_protocol: Mapping[str, float]
    course: Mapping[str, tuple[float, float]]

    @property
    def strength(self) -> float:
        """The smaller of the two absolute correlations, 0 where their signs differ or one is missing."""
        if self.across is None or self.within.value * self.across.value <= 0:
            return 0.0
        return min(abs(self.within.value), abs(self.across.value))


@dataclass(frozen=True)
class Predicts:
    """The answer: instruments, strongest first."""

    ranking: tuple[Foresight, ...]
    runs: int

    name: ClassVar[str] = "predicts"
    description: ClassVar[str] = (
        "does an instrument foretell the learning of the next task? rank correlations"
    )
    presets: ClassVar[tuple[str, ...]] = ("demo", "small", "paper")

    @staticmethod
    def specs(preset: str, seeds: Sequence[int]) -> list[RunSpec]:
        """Protocols × methods × seeds, measured by the standard bundle at about `POINTS` tasks."""
        made = [protocols.create(name, preset) for name in WEAR]
        return [
            RunSpec(
                protocol=protocol, method=method, seed=seed, measure_every=max(1, protocol.tasks // POINTS),
                instruments="standard",
            )
            for seed in seeds
            for protocol in made
            for method in METHODS
        ]  # fmt: skip

    @classmethod
    def read(cls, root: Path) -> Predicts:
        """From the finished runs below ``root``.

        Raises:
            StoreError: a run is missing or not finished.
        """
        runs = {
            (p, m, seed): run
            for p in WEAR
            for m in METHODS
            for seed, run in finished(Path(root) / p / m).items()
        }
        series = {key: all_series(run) for key, run in runs.items()}
        names = sorted({name for found in series.values() for name in found})
        found = [f for name in names if (f := _foresight(name, series)) is not None]
        return cls(tuple(sorted(found, key=lambda f: (-f.strength, -abs(f.within.value)))), len(runs))

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        rows = [{**asdict(f), "strength": f.strength} for f in self.ranking]
        return {"runs": self.runs, "ranking": plain(rows)}

    def __str__(self) -> str:
        form = "{:<44} {:<24} {:<24}"
        lines = [f"rank correlation with the learning of the next task, {self.runs} runs", ""]
        lines.append(form.format("instrument", "within streams", "across methods").rstrip())
        lines += [form.format(f.instrument, short(f.within), short(f.across)).rstrip() for f in self.ranking]
        return "\n".join(lines)


def all_series(run: StoredRun) -> dict[str, dict[int, tuple[float, float]]]:
    """Instrument -> task t -> (value at its end, online metric of task t + 1); network-wide rows alone."""
    level = curve(run.records, "online")
    found: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    for r in run.records:
        if r.layer != "*" or r.part or r.status != "measured" or not math.isfinite(r.value):
            continue
        task = int(r.task.rpartition("-")[2])
        if task + 1 < len(level) and not r.instrument.startswith(("online_", "end_")):
            name = f"{r.instrument} ({r.variant})" if r.variant else r.instrument
            found[name][task] = (r.value, level[task + 1])
    return found


def spearman(pairs: Series) -> float:
    """Rank correlation with mean ranks for ties; NaN for fewer than `FEWEST` pairs or a constant side.

    >>> spearman([(i, i * i) for i in range(10)])
    1.0
    """
    if len(pairs) < FEWEST:
        return math.nan
    a, b = (_ranks(np.array(side)) for side in zip(*pairs, strict=True))
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(round(np.corrcoef(a, b)[0, 1], 12))


def _ranks(values: np.ndarray) -> np.ndarray:
    order, ranks = np.argsort(values, kind="stable"), np.empty(len(values))
    ranks[order] = np.arange(len(values))
    _, inverse = np.unique(values, return_inverse=True)
    return (np.bincount(inverse, ranks) / np.bincount(inverse))[inverse]


Key = tuple[str, str, int]  # protocol, method, seed


def _foresight(
    name: str, series: Mapping[Key, Mapping[str, Mapping[int, tuple[float, float]]]]
) -> Foresight | None:
    """None where the instrument was measured in too few runs."""
    within: dict[str, list[float]] = defaultdict(list)
    for (protocol, _, _), found in series.items():
        rho = spearman(list(found.get(name, {}).values()))
        if not math.isnan(rho):
            within[protocol].append(rho)
    across = [rho for protocol in WEAR for rho in _across(name, protocol, series)]
    every = [rho for found in within.values() for rho in found]
    if len(every) < 2:
        return None
    mean = {p: float(np.mean(found)) for p, found in within.items()}
    pooled = bootstrap(across, np.mean) if len(across) > 1 else None
    course = {p: ends for p in WEAR if (ends := _ends(name, p, series)) is not None}
    return Foresight(name, bootstrap(every, np.mean), pooled, mean, course)


def _ends(
    name: str, protocol: str, series: Mapping[Key, Mapping[str, Mapping[int, tuple[float, float]]]]
) -> tuple[float, float] | None:
    """Mean value of the plain network at its first and last look."""
    plain_runs = [found.get(name, {}) for (p, m, _), found in series.items() if (p, m) == (protocol, "plain")]
    ends = [(at[min(at)][0], at[max(at)][0]) for at in plain_runs if at]
    if not ends:
        return None
    return float(np.mean([e[0] for e in ends])), float(np.mean([e[1] for e in ends]))


def _across(
    name: str, protocol: str, series: Mapping[Key, Mapping[str, Mapping[int, tuple[float, float]]]]
) -> list[float]:
    """One correlation for each measured task, over all methods and seeds of a protocol at that task."""
    at: dict[int, Series] = defaultdict(list)
    for (which, _, _), found in series.items():
        for task, pair in found.get(name, {}).items() if which == protocol else ():
            at[task].append(pair)
    return [rho for pairs in at.values() if not math.isnan(rho := spearman(pairs))]
