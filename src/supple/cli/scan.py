"""`supple scan`: what weights on disk say, one checkpoint or the rounds in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from supple.cli.diagnose import MECHANISMS_THAT_FAIL, check_targets
from supple.errors import InputError, need

if TYPE_CHECKING:
    from supple.scan import ScanReport


@dataclass(frozen=True)
class Scan:
    """Measure spectra and ranks of checkpoints; with two or more, compare round against round.

    Files are read tensor by tensor and never executed. A file that cannot be read is named and the rest goes
    on. Exit status: 0, 1 (a finding at or above --fail-on), 2 (a file could not be read).
    """

    checkpoints: tuple[Path, ...]
    """.safetensors, .pt, .pth, .ckpt or .bin files, model folders or folders of LoRA adapters; rounds in order, the
    oldest first."""
    instruments: str = "all"
    """Names separated by commas, or all."""
    embeddings: bool = False
    """Measure embedding tables too."""
    budget: float | None = None
    """Seconds; what is not reached by then is listed as not measured."""
    estimate: bool = False
    """Large matrices by a few products with them, each value with its stated error; srank and the noise floor are
    left out."""
    base: Path | None = None
    """The model that LoRA adapters were trained on: each adapter is measured as the base's matrices with its products
    added. Without it the products alone are measured."""
    memory: float | None = None
    """MiB for the tensors and the work on them (all processes together), checked before each is read; what would go
    over is estimated where that fits, and else listed as not measured."""
    workers: int = 0
    """Processes that take a checkpoint at a time; 0 works in this process."""
    html: Path | None = None
    """Write one offline HTML page with plots by matrix and round to this file."""
    parquet: Path | None = None
    """Write the records as a Parquet table to this file (extra bench)."""
    json: Path | None = None
    """Write everything as JSON to this file, or to stdout with -."""
    fail_on: Literal["present", "inconclusive", "never"] = "never"
    """Exit with 1 when a finding has this status (inconclusive counts present too; NaN or Inf counts with both)."""

    def run(self) -> int:
        from supple.cli.console import emit_json, note, say

        if not self.checkpoints:
            raise InputError("no checkpoint was named", do="supple scan CKPT [CKPT …]")
        outputs = {"json": self.json, "html": self.html, "parquet": self.parquet}
        check_targets(outputs, inputs=(*self.checkpoints, self.base))
        if self.parquet is not None:
            need("pyarrow", "bench")
        report = self._measure()
        if str(self.json) != "-" and report.runs:
            say(str(report))
        emit_json(report.to_dict(), self.json)
        for target, written in ((self.html, report.to_html), (self.parquet, report.to_parquet)):
            if target is not None:
                note(f"wrote {written(target)}")
        if report.failures:
            shown = report.runs and str(self.json) != "-"  # the table named each of them already
            total = len(self.checkpoints)
            texts = [f"{len(report.failures)} of {total} checkpoints were not read"]
            for text in texts if shown else [f.message for f in report.failures]:
                note(f"supple: {text}")
            return 2
        bad = MECHANISMS_THAT_FAIL.get(self.fail_on, ())
        return int(any(f.status in bad for f in report.findings))

    def _measure(self) -> ScanReport:
        from supple.cli.console import Progress
        from supple.scan import scan

        names = "all" if self.instruments == "all" else tuple(self.instruments.split(","))
        counts: dict[str, int] = {}
        with Progress("scanning") as bar:

            def progress(label: str, done: int) -> None:
                counts[label] = done
                # The number of matrices is known only at the end of a file; a part of it counts by halves.
                share = sum(n / (n + 1) for n in counts.values())
                bar.update(share / len(self.checkpoints), f"{label}, {done} matrices")

            report = scan(
                self.checkpoints,
                instruments=names,
                embeddings=self.embeddings,
                budget=self.budget,
                estimate=self.estimate,
                base=self.base,
                memory=self.memory,
                workers=self.workers,
                progress=progress,
            )
        return report
