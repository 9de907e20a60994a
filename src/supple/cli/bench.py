"""`supple bench`: which protocols and methods there are, run them, and compare what was run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from supple.cli.diagnose import check_target
from supple.errors import InputError


@dataclass(frozen=True)
class BenchList:
    """List the protocols and the methods that can be run on them."""

    json: Path | None = None
    """Write the list as JSON to this file, or to stdout with -."""

    def run(self) -> int:
        from supple.bench.methods import METHODS
        from supple.bench.protocols import PROTOCOLS
        from supple.cli.console import emit_json, say

        check_target(self.json)
        if str(self.json) != "-":
            say("protocols")
            for name, protocol in PROTOCOLS.items():
                say(f"  {name:<22} {protocol.description}; presets: {', '.join(protocol.presets)}")
            say("methods")
            for name, method in METHODS.items():
                say(f"  {name:<22} {method.title}")
        table = {
            "protocols": {
                n: {"title": p.title, "description": p.description, "presets": list(p.presets)}
                for n, p in PROTOCOLS.items()
            },
            "methods": {n: m.title for n, m in METHODS.items()},
        }
        emit_json(table, self.json)
        return 0


@dataclass(frozen=True)
class BenchRun:
    """Run methods and seeds of one protocol, in processes; what is finished already is not run again."""

    protocol: str
    """A name from `supple bench list`."""
    methods: str = "plain,fresh,regrama"
    """Names separated by commas, or all."""
    seeds: int = 3
    """Seeds 0 to N-1."""
    preset: str = "demo"
    """Size of the protocol."""
    measure_every: int = 0
    """Measure ranks, dead units, kernel … after every k-th task; 0: accuracy only."""
    out: Path = Path("runs/bench")
    """Folder for the runs."""
    workers: int | None = None
    """Processes (default: one per core)."""
    engine: Literal["auto", "loop", "cohort"] = "auto"
    """loop: one run at a time in a process; cohort: all seeds of a method in one stacked program; auto: the
    cohort where it has a form of the method."""
    json: Path | None = None
    """Write the table as JSON to this file, or to stdout with -."""

    def run(self) -> int:
        from supple.bench import grid, with_engine
        from supple.bench.methods import METHODS
        from supple.cli.train import train

        check_target(self.json)
        for name in ("seeds", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1", found=value)
        names = list(METHODS) if self.methods == "all" else self.methods.split(",")
        specs = grid(
            self.protocol,
            names,
            list(range(self.seeds)),
            preset=self.preset,
            measure_every=self.measure_every,
        )
        train(self.protocol, with_engine(specs, self.engine), self.out, self.workers)
        return show(self.out, self.json)


@dataclass(frozen=True)
class BenchReport:
    """Compare the finished runs of a folder: one row a method, means with t intervals over seeds."""

    folder: Path
    """Where the runs are."""
    csv: Path | None = None
    """Write the table as CSV to this file."""
    json: Path | None = None
    """Write the table as JSON to this file, or to stdout with -."""

    def run(self) -> int:
        from supple.bench import collect
        from supple.cli.console import note, write_text

        check_target(self.json)
        check_target(self.csv)
        if not self.folder.is_dir():
            raise InputError("there is no such folder", where=str(self.folder))
        if self.csv is not None:
            note(f"wrote {write_text(self.csv, collect(self.folder).to_csv())}")
        return show(self.folder, self.json)


def show(folder: Path, json: Path | None) -> int:
    """Print the table of a folder of runs, and write it."""
    from supple.bench import collect
    from supple.cli.console import emit_json, say

    summary = collect(folder)
    if str(json) != "-":
        say(str(summary))
    emit_json({"rows": summary.to_dicts(), "left_out": summary.left_out}, json)
    return 0
