"""What the studies of agents share: methods beside the plain agent and the oracle, over the tasks of some suites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from supple.bench import protocols
from supple.bench.rows import curve
from supple.bench.spec import RunSpec
from supple.bench.statistics import Estimate, Paired, bootstrap, mean, paired
from supple.bench.studies.base import finished
from supple.bench.tables import aligned
from supple.diagnose.types import plain
from supple.records import MEASURED
from supple.store import StoredRun

PLAIN, ORACLE = "plain", "fresh"
S = TypeVar("S", bound="AgentStudy")


@dataclass(frozen=True)
class Agent:
    """One method in one environment: mean return over tasks 1 to the end, and how its networks are in the end.

    ``share``: of the gap between plain and oracle that it closes, 1 is the oracle; None where the oracle is not
    better than the plain agent. ``over_plain`` is paired over seeds. ``course``: mean return of each task;
    ``relative``: the same over the oracle's, where the study counts in oracles (then ``returns`` does too), with None
    where the oracle has no positive return. ``tasks`` names them: by their games, where there are any.
    ``ends``: (seeds, tasks) what was recorded at the end of each task, where the study asks for it.
    """

    protocol: str
    method: str
    tasks: tuple[str, ...]
    returns: Estimate
    share: Estimate | None
    over_plain: Paired | None
    course: tuple[float, ...]
    relative: tuple[float | None, ...] | None
    health: Mapping[str, float | None]
    ends: Mapping[str, tuple[tuple[float, ...], ...]] | None = None


@dataclass(frozen=True)
class AgentStudy:
    """The answer; see `specs` for the runs. A subclass names suites, methods, and what is shown of the networks."""

    agents: tuple[Agent, ...]
    seeds: int

    name: ClassVar[str]
    description: ClassVar[str]
    suite: ClassVar[tuple[str, ...]]
    methods: ClassVar[tuple[str, ...]]
    #: suite -> methods that are compared in it alone
    more: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: at the end of the last task: heading -> (record, variant)
    health: ClassVar[Mapping[str, tuple[str, str]]]
    #: of these, the columns of the table: heading there -> heading
    columns: ClassVar[Mapping[str, str]]
    #: what `Agent.ends` holds: heading -> record
    ends: ClassVar[Mapping[str, str]] = {}
    #: whether the return of each task counts as a share of the oracle's in that task
    in_oracles: ClassVar[bool] = False
    presets: ClassVar[tuple[str, ...]] = ("demo", "small", "day", "paper")

    @classmethod
    def arms(cls, suite: str) -> tuple[str, ...]:
        """The methods that are compared in a suite."""
        return (*cls.methods, *cls.more.get(suite, ()))

    @classmethod
    def specs(cls, preset: str, seeds: Sequence[int]) -> list[RunSpec]:
        """Environments × methods × seeds; the networks are measured after the first and the last task."""
        made = [protocols.create(name, preset) for name in cls.suite]
        return [
            RunSpec(
                protocol=protocol, method=method, seed=seed, measure_every=protocol.tasks,
                edge_instruments="economy", checkpoint_every=1,
            )
            for seed in seeds
            for protocol in made
            for method in cls.arms(protocol.name)
        ]  # fmt: skip

    @classmethod
    def read(cls: type[S], root: Path) -> S:
        """From the finished runs below ``root``.

        Raises:
            StoreError: a run is missing or not finished.
        """
        agents: list[Agent] = []
        seeds = 0
        for protocol in cls.suite:
            runs = {m: finished(Path(root) / protocol / m) for m in cls.arms(protocol)}
            shared = sorted(set.intersection(*(set(found) for found in runs.values())))
            seeds = len(shared)
            courses = {
                m: np.array([curve(found[s].records, "online") for s in shared]) for m, found in runs.items()
            }
            agents += [
                cls._agent(protocol, m, courses, [found[s] for s in shared]) for m, found in runs.items()
            ]
        return cls(tuple(agents), seeds)

    @classmethod
    def _agent(
        cls, protocol: str, method: str, courses: Mapping[str, npt.NDArray[Any]], runs: list[StoredRun]
    ) -> Agent:
        unit = np.ones(courses[ORACLE].shape[1])
        if cls.in_oracles:
            level = courses[ORACLE].mean(0)
            unit = np.where(level > 0, level, np.nan)
        counted = {m: courses[m] / unit for m in (PLAIN, ORACLE, method)}
        low, own, high = (_levels(counted[m]) for m in (PLAIN, method, ORACLE))
        relative = [float(v) if math.isfinite(v) else None for v in counted[method].mean(0)]
        return Agent(
            protocol, method, _tasks(runs[0]), mean(own), _share(low, own, high),
            None if method == PLAIN or len(own) < 2 else paired(own, low),
            tuple(courses[method].mean(0).tolist()), tuple(relative) if cls.in_oracles else None,
            {h: _end(runs, *row) for h, row in cls.health.items()},
            {h: tuple(map(partial(_ends, record=row), runs)) for h, row in cls.ends.items()} or None,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain types; what one run has no interval for is None."""
        return dict(plain(asdict(self)))

    def __str__(self) -> str:
        unit = "over the oracle's in the same task" if self.in_oracles else "as it is"
        lines = [
            f"mean return over the tasks after the first, {unit}, {self.seeds} seeds; "
            "share: of plain's gap to the oracle"
        ]
        for protocol in self.suite:
            mine = [a for a in self.agents if a.protocol == protocol]
            table = [("method", "return", "share", *self.columns)]
            for a in sorted(mine, key=lambda a: -a.returns.value):
                health = [a.health[h] for h in self.columns.values()]
                cells = ["–" if v is None else f"{v:.2f}" for v in health]
                level = _told(a.returns, 2 if self.in_oracles else 0)
                table.append((a.method, level, _told(a.share, 2), *cells))
            lines += ["", protocol, *aligned(table, least=(14, 20, 20)), *self._by_task(mine)]
        return "\n".join(lines)

    def _by_task(self, mine: Sequence[Agent]) -> list[str]:
        """A line a method: the return of each task as a share of the oracle's."""
        if not self.in_oracles or not mine:
            return []
        lines = ["", f"task by task: {', '.join(mine[0].tasks)}"]
        shares = [["–" if v is None else f"{v:.2f}" for v in a.relative or ()] for a in mine]
        longest = max(map(len, shares))
        rows = [
            [a.method, *cells, *[""] * (longest - len(cells))] for a, cells in zip(mine, shares, strict=True)
        ]
        return lines + aligned(rows, least=(14,))


def _levels(courses: npt.NDArray[Any]) -> list[float]:
    """Of each seed the mean over the tasks after the first; NaN in a task counts it out."""
    later = courses[:, 1:]
    known = np.isfinite(later).all(0)
    return later[:, known].mean(1).tolist() if known.any() else [math.nan] * len(courses)


def _share(low: Sequence[float], own: Sequence[float], high: Sequence[float]) -> Estimate | None:
    """(own − plain) / (oracle − plain) of the means over seeds, seeds drawn together."""
    if not fmean(high) > fmean(low):
        return None
    table = np.array([low, own, high])

    def ratio(rows: Any) -> float:
        a, b, c = table[:, np.asarray(rows, dtype=np.int64)].mean(1)
        return float((b - a) / (c - a)) if c > a else math.nan

    found = bootstrap(np.arange(float(len(low))), ratio)
    return found if math.isfinite(found.value) else None


def _tasks(run: StoredRun) -> tuple[str, ...]:
    about = run.manifest["run"]["protocol"]
    games = about.get("games") or [f"task-{k}" for k in range(about["tasks"])]
    return tuple(games[k % len(games)] for k in range(about["tasks"]))


def _end(runs: Sequence[StoredRun], instrument: str, variant: str) -> float | None:
    """Mean over runs at the last task; None where it was not measured in every run."""
    values = []
    for run in runs:
        last = f"task-{run.manifest['run']['protocol']['tasks'] - 1}"
        rows = run.records.select(instrument=instrument, variant=variant, task=last)
        values += [r.value for r in rows if r.layer in ("", "*") and r.status == MEASURED]
    return fmean(values) if len(values) == len(runs) else None


def _ends(run: StoredRun, record: str) -> tuple[float, ...]:
    """One value a task."""
    return tuple(run.records.select(instrument=record, variant="").values())


def _told(e: Estimate | None, digits: int) -> str:
    if e is None:
        return "no gap"
    text = f"{e.value:.{digits}f}"
    return text if e.samples < 2 or math.isnan(e.lo) else f"{text} [{e.lo:.{digits}f}, {e.hi:.{digits}f}]"
