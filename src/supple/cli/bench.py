"""`supple bench`: which protocols and methods there are, run them, and compare what was run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from supple.cli.bench_choice import changes, chosen, name_data
from supple.cli.diagnose import check_folder, check_target
from supple.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from supple.bench import RunSpec
    from supple.bench.studies import Study


@dataclass(frozen=True)
class BenchList:
    """List the protocols and the methods that can be run on them."""

    json: Path | None = None
    """Write the list as JSON to this file, or to stdout with -."""

    def run(self) -> int:
        from supple.bench.experiments import EXPERIMENTS
        from supple.bench.methods import METHODS
        from supple.bench.protocols import PROTOCOLS
        from supple.bench.studies import STUDIES
        from supple.cli.console import emit_json, say
        from supple.streams.rl import suites

        check_target(self.json)
        if str(self.json) != "-":
            parts: dict[str, dict[str, str]] = {
                "protocols": {n: _listed(p.description, p.presets) for n, p in PROTOCOLS.items()},
                "studies (several protocols, their own methods)": {
                    n: _listed(s.description, s.presets) for n, s in STUDIES.items()
                },
                "experiments (their own cases, one after the other)": {
                    n: _listed(e.description, e.presets) for n, e in EXPERIMENTS.items()
                },
                "reinforcement-learning suites (environments for an agent of yours: supple.streams.rl.suite)": {
                    n: f"extra {s.extra}{', not installed' * bool(s.missing)}" for n, s in suites().items()
                },
                "methods": {n: m.title for n, m in METHODS.items()},
            }
            wide = max(len(name) for lines in parts.values() for name in lines)
            for heading, lines in parts.items():
                say(heading)
                for name, text in lines.items():
                    say(f"  {name:<{wide}} {text}")
        table = {
            "protocols": {
                n: {"title": p.title, "description": p.description, "presets": list(p.presets)}
                for n, p in PROTOCOLS.items()
            },
            "studies": {
                n: {"description": s.description, "presets": list(s.presets)} for n, s in STUDIES.items()
            },
            "experiments": {
                n: {"description": e.description, "presets": list(e.presets)} for n, e in EXPERIMENTS.items()
            },
            "suites": {n: {"extra": s.extra, "missing": list(s.missing)} for n, s in suites().items()},
            "methods": {n: m.title for n, m in METHODS.items()},
        }
        emit_json(table, self.json)
        return 0


def _listed(description: str, presets: Iterable[str]) -> str:
    return f"{description}; presets: {', '.join(presets)}"


@dataclass(frozen=True)
class BenchRun:
    """Run methods and seeds of one protocol, or a study, in processes; what is finished already is not run again."""

    protocol: str
    """A protocol, a study or an experiment: a name from `supple bench list`."""
    methods: str | None = None
    """Names separated by commas, or all that the network has a form of (default: plain,fresh,regrama; a study has
    its own; arms of lm-rounds)."""
    seeds: int = 3
    """Seeds 0 to N-1."""
    preset: str | None = None
    """Size (default: demo of a protocol, small of a study)."""
    tasks: int | None = None
    """Number of tasks, or of rounds of a language model, instead of the preset's; a run of another length is
    another run."""
    optimizer: str | None = None
    """sgd, momentum, adam, adamw, rmsprop, adagrad or muon instead of the protocol's; another run, by its name."""
    layers: str | None = None
    """Widths of the hidden layers of an MLP instead of the preset's, such as 64,64; another run, by its name."""
    hidden_boundaries: bool = False
    """No method but the fresh reference is told where a task ends, no head is zeroed, no output masked; what acts at
    boundaries acts every 1,000 steps instead. Runs of their own, by name."""
    iid: bool = False
    """The control: the same samples shuffled over all tasks into one stream."""
    data: Path | None = None
    """Folder of the data sets (default: SUPPLE_DATA); of lm-rounds and lm-classification: a folder of texts, one .txt
    file (or folder with train.txt) a domain, in place of the languages under SUPPLE_DATA."""
    measure_every: int | None = None
    """Measure ranks, dead units, kernel … after every k-th task (default: accuracy only; a study has its own)."""
    out: Path = Path("runs/bench")
    """Folder for the runs."""
    workers: int | None = None
    """Processes (default: one per core)."""
    model: Path | None = None
    """lm-rounds, lm-classification: a local transformers folder of a causal language model, in place of the
    small GPT."""
    engine: Literal["auto", "loop", "cohort", "ray"] = "auto"
    """loop: one run at a time in a process; cohort: all seeds of a method in one stacked program; auto: the
    cohort where it has a form of the method; ray: as auto, on the Ray cluster of RAY_ADDRESS, whose nodes must share
    the folder of the runs."""
    json: Path | None = None
    """Write the table as JSON to this file, or to stdout with -."""

    def run(self) -> int:
        from supple.bench import grid, protocols
        from supple.bench.experiments import EXPERIMENTS
        from supple.bench.studies import STUDIES
        from supple.cli.experiments import run_experiment

        check_target(self.json)
        check_folder(self.out)
        for name, least in (("seeds", 1), ("workers", 1), ("tasks", 1), ("measure_every", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}", found=value)
        if self.engine == "ray" and self.workers is not None:
            raise InputError("--engine ray takes every core of the cluster, and no --workers")
        if self.protocol in EXPERIMENTS:
            return run_experiment(EXPERIMENTS[self.protocol], self)
        if self.protocol in STUDIES:
            return self._study(STUDIES[self.protocol])
        if self.model is not None:
            raise InputError(
                f"--model is for lm-rounds and lm-classification; {self.protocol} has its own network"
            )
        name_data(self.data)
        protocol = protocols.create(
            self.protocol,
            self.preset or "demo",
            iid=self.iid,
            hidden_boundaries=self.hidden_boundaries,
            **changes(self),
        )
        if self.layers is not None and protocol.network != "mlp":
            raise InputError(
                "--layers is for protocols with an MLP",
                found=f"network {protocol.network}",
                where=protocol.name,
            )
        protocol.check()
        specs = grid(
            protocol,
            chosen(protocol, self.methods or "plain,fresh,regrama"),
            list(range(self.seeds)),
            measure_every=self.measure_every or 0,
        )
        self._train(self.protocol, specs, self.out)
        return show(self.out, self.json)

    def _train(self, title: str, specs: Sequence[RunSpec], out: Path) -> None:
        """Compute the list with the engine and on the cores that were asked for."""
        from supple.bench import with_engine
        from supple.cli.train import train

        on_ray = self.engine == "ray"
        train(
            title,
            with_engine(specs, "auto" if self.engine == "ray" else self.engine),
            out,
            self.workers,
            on_ray=on_ray,
        )

    def _study(self, study: type[Study]) -> int:
        from supple.cli.console import emit_json, say

        own = {
            "--methods": self.methods,
            "--measure-every": self.measure_every,
            "--tasks": self.tasks,
            "--optimizer": self.optimizer,
            "--iid": self.iid or None,
            "--data": self.data,
            "--layers": self.layers,
            "--hidden-boundaries": self.hidden_boundaries or None,
            "--model": self.model,
        }
        if given := [flag for flag, value in own.items() if value is not None]:
            raise InputError(
                f"a study has its own methods and measurements; {study.name} takes no {given[0]}"
            )
        preset = self.preset or "small"
        if preset not in study.presets:
            raise InputError(
                f"unknown preset {preset!r} of {study.name}", do=f"choose one of {', '.join(study.presets)}"
            )
        out = self.out / study.name / preset
        specs = study.specs(preset, range(self.seeds))
        for protocol in {s.protocol.label: s.protocol for s in specs}.values():
            protocol.check()
        self._train(study.name, specs, out)
        answer = study.read(out)
        if str(self.json) != "-":
            say(str(answer))
        emit_json(answer.to_dict(), self.json)
        return 0


def show(folder: Path, json: Path | None, quiet: bool = False) -> int:
    """Print the table of a folder of runs, and write it; ``quiet`` where something else went to stdout: then only what
    was left out is said, on stderr."""
    from supple.bench import collect
    from supple.cli.console import emit_json, note, say

    summary = collect(folder)
    if quiet:
        for name, why in summary.left_out.items():
            note(f"left out: {name}: {why}")
    elif str(json) != "-":
        say(str(summary))
    emit_json({"rows": summary.to_dicts(), "left_out": summary.left_out}, json)
    return 0
