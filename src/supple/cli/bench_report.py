"""`supple bench report`: compare what was run, as text, CSV, JSON, LaTeX, a page and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from supple.cli.bench import show
from supple.cli.diagnose import check_folder, check_targets
from supple.cli.experiments import show_experiment
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.bench.experiments import Experiment


@dataclass(frozen=True)
class BenchReport:
    """Compare the finished runs of a folder: one row a method, means with t intervals over seeds.

    A folder of an experiment (lab, matrix, lm-rounds, lm-classification) gives its own tables in the same forms.
    """

    folder: Path
    """Where the runs are."""
    csv: Path | None = None
    """Write the table as CSV to this file, or to stdout with -."""
    json: Path | None = None
    """Write the table as JSON to this file, or to stdout with -."""
    latex: Path | None = None
    """Write the tables as LaTeX (booktabs) to this file."""
    html: Path | None = None
    """Write a page with courses over tasks, instruments and tables to this file; of several protocols with a fresh
    reference also all together: interquartile means, performance profiles, probability of improvement."""
    figures: Path | None = None
    """Write every figure as SVG and PNG into this folder."""

    def run(self) -> int:
        from supple.bench.experiments import of_folder

        if not self.folder.is_dir():
            raise InputError("there is no such folder", where=str(self.folder))
        outputs = {"csv": self.csv, "json": self.json, "latex": self.latex, "html": self.html}
        check_targets(outputs, stdout=("csv", "json"))
        check_folder(self.figures)
        experiment = of_folder(self.folder)
        self._write(experiment)
        quiet = str(self.csv) == "-"
        if experiment is not None:
            return show_experiment(experiment, self.folder, self.json, quiet)
        return show(self.folder, self.json, quiet)

    def _write(self, experiment: Experiment | None) -> None:
        from supple.cli.console import note, say, write_text

        if str(self.csv) == "-":
            say(self._csv(experiment).rstrip())
        elif self.csv is not None:
            note(f"wrote {write_text(self.csv, self._csv(experiment))}")
        if self.latex is None and self.html is None and self.figures is None:
            return
        from supple.bench.courses import comparison_page
        from supple.report import drawings, latex, write_comparison

        make = comparison_page if experiment is None else experiment.page
        page = make(self.folder, f"supple bench report {self.folder} --html FILE")
        if self.latex is not None:
            note(f"wrote {write_text(self.latex, latex(page))}")
        if self.html is not None:
            note(f"wrote {write_comparison(page, self.html)}")
        if self.figures is not None:
            count = sum(d is not None for part in page.protocols for d in drawings(part, self.figures))
            note(f"wrote {count} figure(s), each as SVG and PNG, to {self.figures}")

    def _csv(self, experiment: Experiment | None) -> str:
        from supple.bench import collect
        from supple.bench.tables import to_csv

        return (
            collect(self.folder).to_csv()
            if experiment is None
            else to_csv(experiment.answer(self.folder).tables)
        )
