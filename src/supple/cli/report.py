"""`supple report`: the page of a finished demo, of a diagnosis, or the figures of any run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supple.cli.diagnose import check_targets
from supple.errors import InputError

if TYPE_CHECKING:
    from supple.diagnose import DiagnosisReport
    from supple.store.read import StoredRun


@dataclass(frozen=True)
class Report:
    """Show what a run folder holds; write its page again where it has one.

    RUN is the folder of a demo (its report is drawn again from its records), a diagnosis JSON (its page is
    drawn), or one run folder with manifest.json (its figures are printed).
    """

    run_path: Path
    """Folder of a demo or of a run, or a diagnosis written with --json."""
    html: Path | None = None
    """Where the page goes (default: beside what it shows)."""
    json: Path | None = None
    """Write the figures as JSON to this file, or to stdout with -."""

    def run(self) -> int:
        path = self.run_path
        if not path.exists():
            raise InputError("there is no such run", where=str(path), do="check the path")
        single = (path / "manifest.json").exists()
        page = self.html if single else self.html or default_page(path)
        own = (path / f"{name}.json" for name in ("manifest", "report", "diagnosis"))
        check_targets({"json": self.json, "html": page}, inputs=(path, *own))
        if path.is_file():
            return self._diagnosis(path)
        if single:
            return self._single(path)
        if (path / "report.json").exists():
            return self._demo(path)
        raise InputError(
            "this folder holds no run",
            where=str(path),
            do="give a demo's folder, a folder with manifest.json, or a diagnosis JSON",
        )

    def _diagnosis(self, path: Path) -> int:
        from supple.cli.console import emit_json, note, say

        report = read_diagnosis(path)
        if str(self.json) != "-":
            say(str(report))
        emit_json(report.to_dict(), self.json)
        note(f"wrote {report.to_html(self.html or default_page(path))}")
        return 0

    def _demo(self, folder: Path) -> int:
        from supple.cli.console import emit_json, note
        from supple.cli.demo import say_verdict
        from supple.report import Story, verdict, write_story

        story = Story.from_dict(read_json(folder / "report.json"), read_json(folder / "diagnosis.json"))
        if str(self.json) != "-":
            say_verdict(verdict(story))
        emit_json({"verdict": verdict(story), **story.to_dict()}, self.json)
        note(f"wrote {write_story(story, self.html or default_page(folder))}")
        return 0

    def _single(self, folder: Path) -> int:
        from supple import store
        from supple.cli.console import emit_json, note, say

        run = store.load(folder)
        latest = {}
        for row in run.records:
            if row.layer == "*":
                latest[row.instrument, row.variant] = row
        if str(self.json) != "-":
            say(f"{folder}: {'finished' if run.done else 'not finished'}, {len(run.records)} records")
            for (name, variant), row in sorted(latest.items()):
                label = f"{name} ({variant})" if variant else name
                value = f"{row.value:.4g}" if row.status == "measured" else f"{row.status}: {row.note}"
                say(f"  {label:<40} {value:<12} {row.task}")
        table = {
            "manifest": run.manifest,
            "summary": run.summary,
            "done": run.done,
            "latest": [r.to_dict() for _, r in sorted(latest.items())],
        }
        emit_json(table, self.json)
        if self.html is not None:
            note(f"wrote {self._page(run)}")
        return 0

    def _page(self, run: StoredRun) -> Path:
        from supple.report import Arm, Story, write_story

        online = run.records.select(instrument="online_accuracy").values()  # the page draws accuracies
        if not online or self.html is None:
            raise InputError("this run has no task accuracies to draw", where=str(run.folder))
        about = run.manifest["run"]
        dead = [r for r in run.records.select(instrument="dead", layer="*") if r.status == "measured"]
        places = [r.task for r in run.records.select(instrument="online_accuracy")]
        shown = Arm(
            about["method"], about["method"], "worn", online=(tuple(online),),
            dead=(tuple(r.value for r in dead),) if dead else (),
            dead_tasks=tuple(places.index(r.task) + 1 for r in dead),
        )  # fmt: skip
        story = Story(
            setting=about["protocol"]["name"], stream=about["protocol"]["name"], tasks=len(online),
            seeds=(about["seed"],), window=max(1, len(online) // 10), arms=(shown,),
            command=f"supple report {run.folder} --html {self.html}",
        )  # fmt: skip
        return write_story(story, self.html)


def default_page(shown: Path) -> Path:
    """The page of a diagnosis or of a demo's folder goes beside what it shows."""
    return shown.with_suffix(".html") if shown.is_file() else shown / "report.html"


def read_diagnosis(path: Path) -> DiagnosisReport:
    """A diagnosis that `supple diagnose --json` or ``report.to_json`` wrote."""
    from supple.diagnose.types import DiagnosisReport

    table = read_json(path)
    try:
        return DiagnosisReport.from_dict(table)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "this file is no diagnosis", found=str(error), where=str(path), do="write one with --json"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table from a file, or one clear message."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            "this file cannot be read as JSON", found=str(error)[:120], where=str(path)
        ) from error
    if not isinstance(table, dict):
        raise InputError("this file is no table", found=type(table).__name__, where=str(path))
    return table
