"""`supple bench tune`: search a method's settings on tuning seeds, report on others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from supple.cli.bench_choice import name_data
from supple.cli.diagnose import check_folder, check_target
from supple.errors import InputError


@dataclass(frozen=True)
class BenchTune:
    """Search the learning rate and a method's own settings (Optuna); report the best beside the defaults."""

    protocol: str
    """A protocol: a name from `supple bench list`."""
    method: str
    """A method: a name from `supple bench list`."""
    preset: str = "small"
    """Size."""
    tasks: int | None = None
    """Number of tasks instead of the preset's."""
    trials: int = 20
    """Settings that are tried, the defaults first; a later call with more goes on."""
    tuning_seeds: int = 3
    """Seeds of each trial; never those of the report."""
    seeds: int = 5
    """Seeds of the report: 0 to N-1."""
    data: Path | None = None
    """Folder of the data sets (default: SUPPLE_DATA)."""
    out: Path = Path("runs/tune")
    """Folder for the trials and runs."""
    workers: int | None = None
    """Processes (default: one per core)."""
    json: Path | None = None
    """Write the result as JSON to this file, or to stdout with -."""

    def run(self) -> int:
        from supple.bench import protocols
        from supple.bench.tune import tune
        from supple.cli.console import emit_json, note, say
        from supple.cli.train import cores

        check_target(self.json)
        check_folder(self.out)
        if self.workers is not None and self.workers < 1:
            raise InputError("--workers must be at least 1", found=self.workers)
        name_data(self.data)
        changed = {} if self.tasks is None else {"tasks": self.tasks}
        protocol = protocols.create(self.protocol, self.preset, **changed)
        protocol.check()
        found = tune(
            protocol, self.method, self.out, trials=self.trials, tuning_seeds=self.tuning_seeds,
            seeds=self.seeds, workers=self.workers or cores(), say=note,
        )  # fmt: skip
        if str(self.json) != "-":
            say(str(found))
        emit_json(found.to_dict(), self.json)
        return 0
