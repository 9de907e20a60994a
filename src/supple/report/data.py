"""What a page is drawn from: arms with their curves, and the diagnoses of the worn and the fresh network.

Plain numbers and diagnosis reports; nothing here knows how they were computed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from supple.diagnose.types import DiagnosisReport, plain
from supple.errors import InputError

#: the roles of the story, in the order in which they are told
ROLES = ("worn", "reference", "prescribed", "famous", "mismatched", "linear")


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean, smallest, largest, how many.

    >>> Spread.of([0.5, 0.7, 0.6])
    Spread(mean=0.6, lo=0.5, hi=0.7, count=3)
    """

    mean: float
    lo: float
    hi: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        kept = [float(v) for v in values if not math.isnan(v)]
        if not kept:
            return cls(math.nan, math.nan, math.nan, 0)
        return cls(math.fsum(kept) / len(kept), min(kept), max(kept), len(kept))

    def __str__(self) -> str:
        if not self.count:
            return "not measured"
        return f"{self.mean:.3f} [{self.lo:.3f}, {self.hi:.3f}]"


@dataclass(frozen=True)
class Arm:
    """One method on the stream.

    ``online`` is seeds x tasks, ``dead`` seeds x measured tasks (``dead_tasks``, from 1), ``stability``
    one value a seed.
    """

    key: str
    title: str
    role: str
    settings: str = ""
    online: tuple[tuple[float, ...], ...] = ()
    dead: tuple[tuple[float, ...], ...] = ()
    dead_tasks: tuple[int, ...] = ()
    stability: tuple[float, ...] = ()

    def late(self, window: int) -> Spread:
        """Online accuracy, mean of the last ``window`` tasks, over seeds."""
        return Spread.of([tail_mean(seed, window) for seed in self.online])

    def early(self, window: int) -> Spread:
        """Online accuracy, mean of the first ``window`` tasks, over seeds."""
        return Spread.of([tail_mean(seed[:window], window) for seed in self.online])

    def last_dead(self) -> Spread:
        """Dead units when measured last, over seeds."""
        return Spread.of([seed[-1] for seed in self.dead if seed])

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Arm:
        """From `Story.to_dict`, whose derived figures are left out."""
        table = {f.name: row[f.name] for f in dataclasses.fields(cls)}
        for name in ("online", "dead"):
            table[name] = tuple(_floats(seed) for seed in table[name])
        table |= {"dead_tasks": tuple(table["dead_tasks"]), "stability": _floats(table["stability"])}
        return cls(**table)


def stretch(place: str, window: int) -> str:
    """A stretch of tasks in words.

    >>> stretch("last", 15), stretch("first", 1)
    ('last 15 tasks', 'first task')
    """
    return f"{place} {window} tasks" if window > 1 else f"{place} task"


def _floats(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if v is None else float(v) for v in values)


def tail_mean(values: Sequence[float], window: int) -> float:
    """Mean of the last ``window`` values; NaN when there is none.

    >>> tail_mean([1.0, 2.0, 4.0], 2)
    3.0
    """
    tail = values[-window:]
    return math.fsum(tail) / len(tail) if tail else math.nan


@dataclass(frozen=True)
class Story:
    """Everything the demo's page shows.

    ``worn`` and ``fresh`` hold one diagnosis a seed; ``spectra`` maps a layer to its singular values after
    the first and after the last task (first seed); ``facts`` are lines on how to reproduce the run.
    """

    setting: str
    stream: str
    tasks: int
    seeds: tuple[int, ...]
    window: int
    arms: tuple[Arm, ...]
    worn: tuple[DiagnosisReport, ...] = ()
    fresh: tuple[DiagnosisReport, ...] = ()
    spectra: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    facts: tuple[tuple[str, str], ...] = ()
    command: str = "supple demo"

    def arm(self, role: str) -> Arm | None:
        """The arm that plays a role, or None."""
        return next((a for a in self.arms if a.role == role), None)

    @property
    def ordered(self) -> tuple[Arm, ...]:
        return tuple(sorted(self.arms, key=lambda a: ROLES.index(a.role)))

    def to_dict(self) -> dict[str, Any]:
        """Plain types; the diagnoses have files of their own."""
        table = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("worn", "fresh", "arms")
        }
        arms = [
            {
                **dataclasses.asdict(arm),
                "late": dataclasses.asdict(arm.late(self.window)),
                "early": dataclasses.asdict(arm.early(self.window)),
                "stability_spread": dataclasses.asdict(Spread.of(arm.stability)),
            }
            for arm in self.ordered
        ]
        return plain({**table, "arms": arms})

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], diagnoses: Mapping[str, Any]) -> Story:
        """Inverse of `to_dict`, the diagnoses being those of the file beside it."""
        try:
            return cls(
                setting=row["setting"],
                stream=row["stream"],
                tasks=row["tasks"],
                seeds=tuple(row["seeds"]),
                window=row["window"],
                arms=tuple(Arm.from_dict(a) for a in row["arms"]),
                worn=tuple(DiagnosisReport.from_dict(r) for r in diagnoses["worn"]),
                fresh=tuple(DiagnosisReport.from_dict(r) for r in diagnoses["fresh"]),
                spectra={k: (_floats(a), _floats(b)) for k, (a, b) in row["spectra"].items()},
                facts=tuple((k, v) for k, v in row["facts"]),
                command=row["command"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                "this is no report.json of a demo", found=f"{type(error).__name__}: {error}"
            ) from error
