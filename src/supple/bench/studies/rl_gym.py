"""Does an agent stop learning when its observations move? PPO on Gym control with offsets, with remedies.

After Tang et al. 2025 (arXiv 2506.00592). The oracle is a fresh agent for every task. What a run is judged on is its
mean return over the tasks after the first, in which all methods are new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import numpy as np

from supple.bench import protocols
from supple.bench.rows import curve
from supple.bench.spec import RunSpec
from supple.bench.statistics import Estimate, Paired, bootstrap, mean, paired
from supple.bench.studies.base import finished
from supple.diagnose.types import plain
from supple.records import MEASURED
from supple.store import StoredRun

SUITE = ("cartpole-offsets", "acrobot-offsets")
PLAIN, ORACLE = "plain", "fresh"
METHODS = (
    PLAIN, ORACLE, "redo", "regrama", "cbp", "l2init", "layernorm", "cchain", "crelu", "spectral", "shrink_perturb",
    "trac",
)  # fmt: skip
#: what is shown of the networks at the end of the last task: heading -> (record, variant)
HEALTH: Mapping[str, tuple[str, str]] = {
    "policy entropy": ("policy_entropy", ""),
    "max |logit|": ("policy_max_logit", ""),
    "dormant": ("dormant", "tau=0.025"),
    "GraMa": ("grama", "preactivation,tau=0.025"),
    "policy trainability": ("policy_trainability", ""),
    "with unlearning": ("policy_trainability_with_unlearning", ""),
    "value trainability": ("value_trainability", ""),
}


@dataclass(frozen=True)
class Agent:
    """One method in one environment: mean return over tasks 1 to the end, and how its networks are in the end.

    ``share``: of the gap between plain and oracle that it closes, 1 is the oracle; None where the oracle is not
    better than the plain agent. ``over_plain`` is paired over seeds. ``course``: mean return of each task.
    """

    protocol: str
    method: str
    returns: Estimate
    share: Estimate | None
    over_plain: Paired | None
    course: tuple[float, ...]
    health: Mapping[str, float | None]


@dataclass(frozen=True)
class RlGym:
    """The answer; see `specs` for the runs."""

    agents: tuple[Agent, ...]
    seeds: int

    name: ClassVar[str] = "rl-gym"
    description: ClassVar[str] = (
        "PPO on CartPole and Acrobot with moving observations: plain, oracle, remedies"
    )
    presets: ClassVar[tuple[str, ...]] = ("demo", "small", "day", "paper")

    @staticmethod
    def specs(preset: str, seeds: Sequence[int]) -> list[RunSpec]:
        """Environments × methods × seeds; the networks are measured after the first and the last task."""
        made = [protocols.create(name, preset) for name in SUITE]
        return [
            RunSpec(
                protocol=protocol, method=method, seed=seed, measure_every=protocol.tasks,
                edge_instruments="economy", checkpoint_every=1,
            )
            for seed in seeds
            for protocol in made
            for method in METHODS
        ]  # fmt: skip

    @classmethod
    def read(cls, root: Path) -> RlGym:
        """From the finished runs below ``root``.

        Raises:
            StoreError: a run is missing or not finished.
        """
        agents: list[Agent] = []
        seeds = 0
        for protocol in SUITE:
            runs = {m: finished(Path(root) / protocol / m) for m in METHODS}
            shared = sorted(set.intersection(*(set(found) for found in runs.values())))
            seeds = len(shared)
            courses = {m: [curve(found[s].records, "online") for s in shared] for m, found in runs.items()}
            for method, found in runs.items():
                agents.append(_agent(protocol, method, courses, [found[s] for s in shared]))
        return cls(tuple(agents), seeds)

    def to_dict(self) -> dict[str, Any]:
        """Plain types; what one run has no interval for is None."""
        return dict(plain(asdict(self)))

    def __str__(self) -> str:
        lines = [
            f"mean return over the tasks after the first, {self.seeds} seeds; share: of plain's gap to the oracle"
        ]
        form = "{:<16}{:>22}{:>22}{:>9}{:>9}{:>9}{:>11}"
        for protocol in SUITE:
            mine = [a for a in self.agents if a.protocol == protocol]
            lines += ["", protocol]
            lines.append(
                form.format("method", "return", "share", "entropy", "|logit|", "dormant", "trainable")
            )
            for a in sorted(mine, key=lambda a: -a.returns.value):
                health = [
                    a.health[h] for h in ("policy entropy", "max |logit|", "dormant", "policy trainability")
                ]
                cells = ["–" if v is None else f"{v:.2f}" for v in health]
                lines.append(form.format(a.method, _told(a.returns, 0), _told(a.share, 2), *cells))
        return "\n".join(lines)


def _agent(
    protocol: str, method: str, courses: Mapping[str, list[list[float]]], runs: list[StoredRun]
) -> Agent:
    levels = {m: [fmean(c[1:]) for c in courses[m]] for m in (PLAIN, ORACLE, method)}
    own = levels[method]
    health = {h: _end(runs, *row) for h, row in HEALTH.items()}
    return Agent(
        protocol, method, mean(own), _share(levels[PLAIN], own, levels[ORACLE]),
        None if method == PLAIN or len(own) < 2 else paired(own, levels[PLAIN]),
        tuple(np.mean(courses[method], axis=0).tolist()), health,
    )  # fmt: skip


def _share(low: Sequence[float], own: Sequence[float], high: Sequence[float]) -> Estimate | None:
    """(own − plain) / (oracle − plain) of the means over seeds, seeds drawn together."""
    if fmean(high) <= fmean(low):
        return None
    table = np.array([low, own, high])

    def ratio(rows: Any) -> float:
        a, b, c = table[:, np.asarray(rows, dtype=np.int64)].mean(1)
        return float((b - a) / (c - a)) if c > a else math.nan

    found = bootstrap(np.arange(float(len(low))), ratio)
    return found if math.isfinite(found.value) else None


def _end(runs: Sequence[StoredRun], instrument: str, variant: str) -> float | None:
    """Mean over runs at the last task; None where it was not measured in every run."""
    values = []
    for run in runs:
        last = f"task-{run.manifest['run']['protocol']['tasks'] - 1}"
        rows = run.records.select(instrument=instrument, variant=variant, task=last)
        values += [r.value for r in rows if r.layer in ("", "*") and r.status == MEASURED]
    return fmean(values) if len(values) == len(runs) else None


def _told(e: Estimate | None, digits: int) -> str:
    if e is None:
        return "no gap"
    text = f"{e.value:.{digits}f}"
    return text if e.samples < 2 or math.isnan(e.lo) else f"{text} [{e.lo:.{digits}f}, {e.hi:.{digits}f}]"
