"""`supple demo`: a network loses its ability to learn, is diagnosed, is repaired, and the result is told.

The story runs on a stream of permuted digits (or of random labels). Every step leaves its result in the
folder and is not repeated when the command is started again, whether it was killed or had finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from supple.errors import InputError

if TYPE_CHECKING:
    from supple.bench.protocols import Protocol
    from supple.report import Story

PROTOCOL_NAMES = {"permuted": "digits-permuted", "random-labels": "digits-random-labels"}
PRESET = "demo"


@dataclass(frozen=True)
class Demo:
    """Watch a network lose its ability to learn, read the diagnosis, see it repaired, open the report.

    Real data (scikit-learn's digits, bundled), about four minutes on two cores. Started again, it goes on
    where it stopped; a finished folder is reused.
    """

    setting: Literal["permuted", "random-labels"] = "permuted"
    """The stream: a new pixel permutation per task, or new random labels per task."""
    fast: bool = False
    """Half the tasks."""
    seeds: int = 3
    """How many seeds; figures are means with the smallest and largest seed."""
    tasks: int | None = None
    """Number of tasks (default: as published by the protocol, or half of it with --fast)."""
    out: Path | None = None
    """Folder for runs and report (default: runs/demo-SETTING-TASKSxSEEDS)."""
    workers: int | None = None
    """Processes (default: one per core)."""
    budget: float = 8.0
    """Seconds that one diagnosis may spend on learning fresh probe tasks (step 0)."""
    json: Path | None = None
    """Write the figures as JSON to this file too, or to stdout with - (and nothing else there)."""

    def run(self) -> int:
        from supple.cli.console import emit_json, note, say
        from supple.cli.demo.story import tell
        from supple.cli.diagnose import check_target
        from supple.cli.train import cores
        from supple.report import verdict

        self._check()
        check_target(self.json)
        protocol, root = self.protocol(), self.folder()
        root.mkdir(parents=True, exist_ok=True)  # refuses a place that cannot be written before any work
        story = tell(
            protocol,
            root,
            seeds=tuple(range(self.seeds)),
            workers=self.workers or cores(),
            budget=self.budget,
            command=self.command(),
            say=note if self.to_stdout else say,
        )
        if not self.to_stdout:
            say_verdict(verdict(story))
        written = write_files(story, root)
        emit_json(story.to_dict(), self.json)
        note(f"report: {written['report.html']}")
        note(f"numbers: {written['report.json']}, {written['diagnosis.json']}")
        return 0

    @property
    def to_stdout(self) -> bool:
        return str(self.json) == "-"

    def _check(self) -> None:
        for name in ("seeds", "tasks", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1", found=value)
        if not self.budget > 0:
            raise InputError("--budget must be a positive number of seconds", found=self.budget)
        if self.tasks is not None and self.fast:
            raise InputError("--fast and --tasks both set the number of tasks", do="give one of them")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise InputError("--out is not a folder", where=str(self.out))

    def protocol(self) -> Protocol:
        """The protocol at the asked size."""
        from supple.bench.protocols import create

        name = PROTOCOL_NAMES[self.setting]
        whole = create(name, PRESET)
        tasks = self.tasks or (whole.tasks // 2 if self.fast else whole.tasks)
        return create(name, PRESET, tasks=tasks)

    def folder(self) -> Path:
        if self.out is not None:
            return self.out
        return Path("runs") / f"demo-{self.setting}-{self.protocol().tasks}x{self.seeds}"

    def command(self) -> str:
        """The command that repeats this run; what does not change its numbers is left out."""
        words = ["supple demo"]
        if self.setting != "permuted":
            words.append(f"--setting {self.setting}")
        if self.fast:
            words.append("--fast")
        if self.tasks is not None:
            words.append(f"--tasks {self.tasks}")
        if self.seeds != 3:
            words.append(f"--seeds {self.seeds}")
        return " ".join(words)


def say_verdict(lines: list[str]) -> None:
    """The verdict in 80 columns."""
    from supple.cli.console import say, wrap

    say()
    for line in lines:
        say(wrap(line))
    say()


def write_files(story: Story, root: Path) -> dict[str, Path]:
    """report.html, report.json and diagnosis.json, each whole or not at all."""
    import json

    from supple.cli.console import write_text
    from supple.report import verdict, write_story

    table = {"verdict": verdict(story), **story.to_dict()}
    diagnoses = {
        "seeds": list(story.seeds),
        "worn": [r.to_dict() for r in story.worn],
        "fresh": [r.to_dict() for r in story.fresh],
    }
    return {
        "report.html": write_story(story, root / "report.html"),
        "report.json": write_text(root / "report.json", json.dumps(table, indent=1, allow_nan=False) + "\n"),
        "diagnosis.json": write_text(
            root / "diagnosis.json", json.dumps(diagnoses, indent=1, allow_nan=False) + "\n"
        ),
    }
