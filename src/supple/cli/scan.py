"""`supple scan`: what weights on disk say, one checkpoint or the rounds in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from supple.cli.diagnose import MECHANISMS_THAT_FAIL, check_target
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.scan import ScanReport


@dataclass(frozen=True)
class Scan:
    """Measure spectra and ranks of checkpoints; with two or more, compare round against round.

    Files are read tensor by tensor and never executed. A file that cannot be read is named and the rest goes
    on. Exit status: 0, 1 (a finding at or above --fail-on), 2 (a file could not be read).
    """

    checkpoints: tuple[Path, ...]
    """.safetensors, .pt, .pth or .bin files, or model folders; rounds in order, the oldest first."""
    instruments: str = "all"
    """Names separated by commas, or all."""
    embeddings: bool = False
    """Measure embedding tables too."""
    budget: float | None = None
    """Seconds; what is not reached by then is listed as not measured."""
    estimate: bool = False
    """Large matrices by a few products with them, each value with its stated error; srank and the noise floor are
    left out."""
    json: Path | None = None
    """Write everything as JSON to this file, or to stdout with -."""
    fail_on: Literal["present", "inconclusive", "never"] = "never"
    """Exit with 1 when a finding has this status (inconclusive counts present too)."""

    def run(self) -> int:
        from supple.cli.console import emit_json, say

        if not self.checkpoints:
            raise InputError("no checkpoint was named", do="supple scan CKPT [CKPT …]")
        check_target(self.json)
        report = self._measure()
        if str(self.json) != "-" and report.runs:
            say(str(report))
        emit_json(report.to_dict(), self.json)
        if report.failures:
            from supple.cli.console import note

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
        place = {}
        with Progress("scanning") as bar:

            def progress(label: str, done: int) -> None:
                place.setdefault(label, len(place))
                # The number of matrices is known only at the end of a file; a part of it counts by halves.
                bar.update(
                    (place[label] + done / (done + 1)) / len(self.checkpoints), f"{label}, {done} matrices"
                )

            report = scan(
                self.checkpoints,
                instruments=names,
                embeddings=self.embeddings,
                budget=self.budget,
                estimate=self.estimate,
                progress=progress,
            )
        return report
