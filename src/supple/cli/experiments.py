"""`supple bench run lab | matrix | lm-rounds`, their reports, and `supple bench fit`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from supple.cli.bench_choice import names
from supple.cli.diagnose import check_target
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.bench.experiments import Experiment
    from supple.cli.bench import BenchRun


def run_experiment(experiment: Experiment, asked: BenchRun) -> int:
    """Compute what the folder has not, and show the answer; options that do nothing here are refused."""
    from supple.cli.console import note

    methods = None if asked.methods is None else names(asked.methods)
    own = {
        "--methods": methods,
        "--measure-every": asked.measure_every,
        "--workers": asked.workers,
        "--seeds": None if asked.seeds == 3 else asked.seeds,
        "--engine": None if asked.engine == "auto" else asked.engine,
        "--tasks": asked.tasks,
        "--optimizer": asked.optimizer,
        "--data": asked.data,
        "--iid": asked.iid or None,
        "--layers": asked.layers,
        "--hidden-boundaries": asked.hidden_boundaries or None,
        "--model": asked.model,
    }
    given = {flag: value for flag, value in own.items() if value is not None}
    if unused := [flag for flag in given if flag not in experiment.settings]:
        raise InputError(f"{experiment.name} has its own cases, in one process; it takes no {unused[0]}")
    settings = {experiment.settings[flag]: value for flag, value in given.items()}
    preset = asked.preset or "small"
    folder = asked.out / experiment.name / preset
    if experiment.folder_of is not None:
        folder = experiment.folder_of(asked.out, preset, **{k: v for k, v in settings.items() if k != "arms"})
    experiment.run(folder, preset, say=note, **settings)
    return show_experiment(experiment, folder, asked.json)


def show_experiment(experiment: Experiment, folder: Path, json: Path | None, quiet: bool = False) -> int:
    """Print what the records of an experiment say, and write it; ``quiet`` where something else went to stdout."""
    from supple.cli.console import emit_json, say
    from supple.diagnose.types import plain

    found = experiment.answer(folder)
    if str(json) != "-" and not quiet:
        say(str(found))
    emit_json(plain(found.figures), json)
    return 0


@dataclass(frozen=True)
class BenchFit:
    """Fit the thresholds and probabilities of a diagnosis on the training half of a lab folder."""

    folder: Path
    """A folder of `supple bench run lab`."""
    json: Path | None = None
    """Write the fit to this file, or to stdout with -; the package reads src/supple/diagnose/fitted.json."""

    def run(self) -> int:
        from supple.bench.lab.fit import of_folder as fitted
        from supple.cli.console import emit_json, say

        check_target(self.json)
        found = fitted(self.folder)
        if str(self.json) != "-":
            for name, value in found["thresholds"].items():
                say(
                    f"{name}: {value['value']:.3f}, sensitivity {value['sensitivity']:.2f} of {value['ill']}, "
                    f"specificity {value['specificity']:.2f} of {value['well']}"
                )
        emit_json(found, self.json)
        return 0
