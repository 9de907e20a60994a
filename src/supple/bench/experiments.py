"""Experiments that are no run list: each judges its cases one after the other and goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from supple.bench import lab, rounds
from supple.bench.lab import matrix, trials
from supple.bench.tables import Table, markdown
from supple.errors import InputError
from supple.report import Comparison, ComparisonPage, Course


@dataclass(frozen=True)
class Answer:
    """What a folder of records says: sentences and tables, everything in plain types, and courses to be drawn."""

    parts: Sequence[str | Table]
    figures: dict[str, Any]
    courses: Mapping[str, Course] = field(default_factory=dict)

    @property
    def tables(self) -> list[Table]:
        return [p for p in self.parts if isinstance(p, Table)]

    def __str__(self) -> str:
        return markdown(self.parts)


@dataclass(frozen=True)
class Experiment:
    """``run(folder, preset, say)`` computes what ``folder`` has not; ``answer(folder)`` is what its records say.

    ``settings`` maps the options of `supple bench run` that it takes to keywords of ``run``; but for the choice
    of arms they make another folder, ``folder_of(out, preset, …)``. ``metric`` is what its courses are of.
    """

    name: str
    description: str
    presets: tuple[str, ...]
    records: str  # name of the file of records, by which a folder is known
    run: Callable[..., Any]
    answer: Callable[[Path], Answer]
    settings: Mapping[str, str] = field(default_factory=dict)
    folder_of: Callable[..., Path] | None = None
    metric: str = ""

    def page(self, folder: Path, command: str = "") -> ComparisonPage:
        """The answer as a page: a part for each table, the courses with the first."""
        found = self.answer(folder)
        parts = [
            Comparison(f"{self.name}-{t.title.replace(' ', '-')}", self.metric, {} if i else found.courses, t.columns,
                       t.rows)
            for i, t in enumerate(found.tables)
        ]  # fmt: skip
        return ComparisonPage(parts, command=command, words=[p for p in found.parts if isinstance(p, str)])


def _lab_answer(folder: Path) -> Answer:
    found = lab.halves(folder)
    told: list[str | Table] = []
    for half, part in found.items():
        own = [replace(p, title=f"{half} {p.title}") if isinstance(p, Table) else p for p in lab.parts(part)]
        told += [f"{half} half", *own]
    return Answer(told, found)


def _matrix_answer(folder: Path) -> Answer:
    rows = matrix.read(folder)
    if not rows:
        raise InputError("there are no records here", where=str(folder))
    return Answer(matrix.parts(rows), {"records": rows})


def _rounds_answer(folder: Path, name: str) -> Answer:
    records = rounds.records_of(folder, name)
    return Answer(rounds.parts(records), rounds.figures(records), rounds.courses(records))


def _trials_answer(folder: Path) -> Answer:
    rows = trials.read(folder)
    if not rows:
        raise InputError("there are no records here", where=str(folder))
    return Answer(trials.parts(rows), {"records": rows})


def _rounds(kind: str, description: str) -> Experiment:
    records = rounds.KINDS[kind][1]
    return Experiment(
        kind, description, tuple(rounds.LENGTHS), records,
        partial(rounds.run_rounds, kind=kind), partial(_rounds_answer, name=records),
        {"--methods": "arms", "--tasks": "rounds", "--model": "model", "--data": "data"},
        partial(rounds.folder_of, kind=kind), "loss",
    )  # fmt: skip


_ALL: Sequence[Experiment] = (
    Experiment(
        "lab", "is a diagnosis right? networks of known illness, the truth by learning and repair",
        tuple(lab.PRESETS), lab.RECORDS, lab.run_lab, _lab_answer,
    ),
    Experiment(
        "matrix", "which remedy gives back what? mechanisms, built and worn, against interventions",
        tuple(matrix.LENGTHS), matrix.RECORDS, matrix.run_matrix, _matrix_answer,
    ),
    Experiment(
        "trials", "is a trial worth following? its first choice, and the table's, against a full run of all",
        tuple(trials.PRESETS), trials.RECORDS, trials.run_trials, _trials_answer,
    ),
    _rounds("lm-rounds", "does a GPT grow stiff over rounds of fine-tuning, one text after another?"),
    _rounds("lm-classification", "the same in rounds of classification: which of 16 texts, drawn anew?"),
)  # fmt: skip
EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in _ALL}


def of_folder(folder: Path) -> Experiment | None:
    """The experiment whose records lie in a folder."""
    return next((e for e in _ALL if (folder / e.records).is_file()), None)
