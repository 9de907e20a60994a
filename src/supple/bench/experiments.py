"""Experiments that are no run list: each judges its cases one after the other and goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from supple.bench import lab, rounds
from supple.bench.lab import matrix, trials
from supple.errors import InputError


@dataclass(frozen=True)
class Experiment:
    """``run(folder, preset, say)`` computes what ``folder`` has not; ``answer(folder)`` is (text, plain types).

    ``settings`` maps the options of `supple bench run` that it takes to keywords of ``run``; but for the choice
    of arms they make another folder, ``folder_of(out, preset, …)``.
    """

    name: str
    description: str
    presets: tuple[str, ...]
    records: str  # name of the file of records, by which a folder is known
    run: Callable[..., Any]
    answer: Callable[[Path], tuple[str, dict[str, Any]]]
    settings: Mapping[str, str] = field(default_factory=dict)
    folder_of: Callable[..., Path] | None = None


def _lab_answer(folder: Path) -> tuple[str, dict[str, Any]]:
    found = lab.halves(folder)
    return "\n\n".join(f"{half} half\n{lab.render(part)}" for half, part in found.items()), found


def _matrix_answer(folder: Path) -> tuple[str, dict[str, Any]]:
    rows = matrix.read(folder)
    if not rows:
        raise InputError("there are no records here", where=str(folder))
    return matrix.render(rows), {"records": rows}


def _trials_answer(folder: Path) -> tuple[str, dict[str, Any]]:
    rows = trials.read(folder)
    if not rows:
        raise InputError("there are no records here", where=str(folder))
    return trials.render(rows), {"records": rows}


def _rounds(kind: str, description: str) -> Experiment:
    records = rounds.KINDS[kind][1]
    return Experiment(
        kind, description, tuple(rounds.LENGTHS), records,
        partial(rounds.run_rounds, kind=kind), partial(rounds.answer, name=records),
        {"--methods": "arms", "--tasks": "rounds", "--model": "model"}, partial(rounds.folder_of, kind=kind),
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
    _rounds("lm-rounds", "does a GPT grow stiff over rounds of fine-tuning, one language after another?"),
    _rounds("lm-classification", "the same in rounds of classification: which of 16 languages, drawn anew?"),
)  # fmt: skip
EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in _ALL}


def of_folder(folder: Path) -> Experiment | None:
    """The experiment whose records lie in a folder."""
    return next((e for e in _ALL if (folder / e.records).is_file()), None)
