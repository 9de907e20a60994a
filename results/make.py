"""Compute the committed results: ``python results/make.py [NAME ...]``; what is finished is not run again.

The image protocols need SUPPLE_DATA.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import supple
from supple.bench import collect, grid, protocols, with_engine
from supple.bench.aggregate import overall
from supple.bench.courses import comparison_page, overall_part
from supple.bench.lab import run_lab
from supple.bench.lab.cases import EVALUATION
from supple.bench.lab.matrix import run_matrix
from supple.bench.lab.trials import run_trials
from supple.bench.rounds import run_rounds
from supple.bench.studies import STUDIES
from supple.bench.summary import stored_runs
from supple.cli.train import train
from supple.report.comparison import drawings
from supple.store.read import load

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs" / "results"
METHODS = (
    "plain,fresh,linear,l2,l2init,shrink_perturb,cbp,redo,regrama,spectral,crelu,fourier,cchain,layernorm"
)

DOMAIN_ARMS = "full,fresh,restart,l2init,spectral,svf,lora"

#: figures of a protocol that are kept beside its table
PICTURES = ("courses", "map")
TOGETHER = "all-protocols"
LAB = "wide"  # thresholds were fitted on the training half of `small`
#: study, preset, seeds
STUDY_PLAN = (
    ("grama-vs-dormant", "small", 5), ("predicts", "demo", 3), ("rl-gym", "small", 5), ("rl-minatar", "small", 5),
)  # fmt: skip
#: protocol, preset, methods, seeds; a name that ends in -iid is the shuffled control
PLAN = (
    ("digits-permuted", "demo", METHODS, 5),
    ("digits-random-labels", "demo", METHODS, 5),
    ("digits-permuted-iid", "demo", "plain,linear", 5),
    ("permuted-mnist", "small", METHODS, 5),
    ("label-flipping-mnist", "small", METHODS, 5),
    ("random-label-mnist", "small", METHODS, 5),
    ("label-noise-mnist", "small", METHODS, 5),
)

#: runs of thousands of tasks: protocol, preset, seed, method -> (tasks, tasks between looks)
LONG_PLAN = (
    ("continual-tiny-imagenet", "long", 0, {"plain": (2000, 100), "cbp": (5000, 250), "fresh": (250, 250)}),
)
BLOCK = 250
ACCURACY = ("online_accuracy", "end_accuracy")
KEPT = (*ACCURACY, "dead", "grama", "dormant")


def make_long(protocol: str, preset: str, seed: int, lengths: dict[str, tuple[int, int]]) -> Path:
    """The long runs of one protocol, as means over blocks of tasks."""
    out = RUNS / preset
    runs, command = [], []
    for method, (tasks, look) in lengths.items():
        made = protocols.create(protocol, preset, tasks=tasks)
        spec = dataclasses.replace(grid(made, [method], [seed])[0], measure_every=look)
        train(f"{protocol}, {method}, {tasks} tasks", [spec], out)
        runs.append({"method": method, "seed": seed, "tasks": tasks, "rows": blocks(out / spec.label)})
        command.append(
            f"supple bench run {protocol} --preset {preset} --tasks {tasks} --methods {method} --seeds {seed + 1} "
            f"--measure-every {look} --out {out.relative_to(HERE.parent)}"
        )
    return _write(protocol, f"{preset}.json", command, long=made.to_dict(), block=BLOCK, runs=runs)


def blocks(folder: Path) -> list[dict[str, Any]]:
    """Per block of tasks: mean accuracy of the batches before they are learned, and of what is judged at the end; the
    instruments at the last look of the block, over the whole network."""
    found: dict[int, dict[str, list[float]]] = {}
    for row in load(folder).records.to_dicts():
        if row["layer"] == "*" and row["value"] is not None and row["instrument"] in KEPT:
            block = int(row["task"].removeprefix("task-")) // BLOCK
            found.setdefault(block, {}).setdefault(row["instrument"], []).append(row["value"])
    return [
        {"first": b * BLOCK, **{k: fmean(v) if k in ACCURACY else v[-1] for k, v in rows.items()}}
        for b, rows in sorted(found.items())
    ]


def make(protocol: str, preset: str, methods: str, seeds: int) -> Path:
    """Run one row of the plan and write its table, with the commands that give the same."""
    out, base = RUNS / preset, protocol.removesuffix("-iid")
    control = base != protocol
    made = protocols.create(base, preset, iid=control)
    specs = grid(made, methods.split(","), list(range(seeds)))
    train(f"{protocol}, {preset}", with_engine(specs, "auto"), out)
    wanted = set(methods.split(","))
    rows = [r for r in collect(out / protocol).to_dicts() if r["method"] in wanted]
    shown = out.relative_to(HERE.parent)
    table = {
        "command": [
            f"supple bench run {base}{' --iid' * control} --preset {preset} --methods {methods} "
            f"--seeds {seeds} --out {shown}",
            f"supple bench report {shown}/{protocol} --json -",
        ],
        "versions": {"supple": supple.__version__, "torch": torch.__version__},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "protocol": made.to_dict(),
        "rows": rows,
    }
    target = HERE / protocol / f"{preset}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draw(out / protocol, target.parent)
    return target


def draw(runs: Path, target: Path) -> None:
    """The courses of one protocol and its map of plasticity and stability, beside its table."""
    (part,) = comparison_page(runs).protocols
    with tempfile.TemporaryDirectory() as made:
        drawings(part, Path(made))
        for name in PICTURES:
            if (found := Path(made) / f"{runs.name}-{name}.svg").exists():
                shutil.copyfile(found, target / f"{name}.svg")


def make_together() -> Path:
    """The protocols of the plan on one scale; their shuffled controls are none."""
    runs: dict[tuple[str, str], Any] = {}
    for protocol, preset, _methods, _seeds in PLAN:
        if not protocol.endswith("-iid"):
            runs |= stored_runs(RUNS / preset / protocol)[0]
    if (found := overall(runs)) is None:
        sys.exit("fewer than two protocols of the plan have runs to compare")
    target = _write(TOGETHER, "overall.json", [f"python results/make.py {TOGETHER}"], **found.to_dict())
    with tempfile.TemporaryDirectory() as made:
        (drawn,) = drawings(overall_part(found), Path(made))
        shutil.copyfile(Path(made) / f"{drawn.name}.svg", target.parent / "profiles.svg")
    return target


def make_study(name: str, preset: str, seeds: int) -> Path:
    """Run one study and write its answer, with the command that gives the same."""
    study, out = STUDIES[name], RUNS / name / preset
    train(name, with_engine(study.specs(preset, range(seeds)), "auto"), out)
    table = {
        "command": [f"supple bench run {name} --preset {preset} --seeds {seeds} --json -"],
        "versions": {"supple": supple.__version__, "torch": torch.__version__},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "answer": study.read(out).to_dict(),
    }
    target = HERE / name / "study.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return target


def make_lab() -> Path:
    """Truth and verdicts of the lab's evaluation half; the table keeps what the page is made of."""
    rows = run_lab(RUNS / "lab" / LAB, LAB, (EVALUATION,), say=print)
    for row in rows:
        row["verdicts"] = {
            name: {k: v for k, v in verdict.items() if k in ("status", "severity", "probability")}
            for name, verdict in row["verdicts"].items()
        }
    command = [f"supple bench run lab --preset {LAB}", f"supple bench report runs/bench/lab/{LAB}"]
    return _write("lab", f"{EVALUATION}.json", command, preset=LAB, records=rows)


def make_sure() -> Path:
    """The truths of `sure`, against which the page holds the same verdicts."""
    rows = run_lab(RUNS / "lab" / "sure", "sure", (EVALUATION,), say=print)
    truths = [{k: v for k, v in row.items() if k not in ("verdicts", "present")} for row in rows]
    return _write("lab", "sure.json", ["python results/make.py lab-sure"], preset="sure", truths=truths)


def make_matrix() -> Path:
    """The matrix of remedies."""
    rows = run_matrix(RUNS / "matrix" / "small", "small", say=print)
    command = ["supple bench run matrix --preset small"]
    return _write("matrix", "records.json", command, preset="small", records=rows)


def make_trials() -> Path:
    """What a trial puts first, against full runs."""
    rows = run_trials(RUNS / "trials" / "small", "small", say=print)
    command = ["supple bench run trials --preset small"]
    return _write("trials", "records.json", command, preset="small", records=rows)


def make_rounds() -> Path:
    """Fine-tuning rounds of a small language model; needs the languages under SUPPLE_DATA."""
    rows = run_rounds(RUNS / "lm-rounds" / "small", "small", say=print)
    command = ["supple bench run lm-rounds --preset small"]
    return _write("lm-rounds", "records.json", command, preset="small", records=rows)


def make_domains(kind: str, preset: str) -> Path:
    """Rounds over the text domains under SUPPLE_DATA; what was made before is not made again."""
    data = Path(os.environ["SUPPLE_DATA"]) / "text"
    rows = run_rounds(
        RUNS / kind / f"{preset}-text", preset, say=print, data=data, kind=kind, arms=DOMAIN_ARMS.split(",")
    )
    return write_domains(kind, preset, rows)


def write_domains(kind: str, preset: str, rows: list[dict[str, Any]]) -> Path:
    """The records as they stand, with the command that makes them all."""
    command = [f"supple bench run {kind} --preset {preset} --data $SUPPLE_DATA/text --methods {DOMAIN_ARMS}"]
    return _write(kind, "domains.json", command, preset=preset, arms=DOMAIN_ARMS.split(","), records=rows)


def _write(name: str, file: str, command: list[str], **content: Any) -> Path:
    table = {
        "command": command,
        "versions": {"supple": supple.__version__, "torch": torch.__version__},
        "python": platform.python_version(),
        "machine": platform.machine(),
        **content,
    }
    target = HERE / name / file
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(table, allow_nan=False) + "\n", encoding="utf-8")
    return target


EXPERIMENTS = {
    "lm-domains": lambda: make_domains("lm-rounds", "small"),
    "lm-domain-classification": lambda: make_domains("lm-classification", "demo"),
    "lab": make_lab,
    "lab-sure": make_sure,
    "matrix": make_matrix,
    "trials": make_trials,
    "lm-rounds": make_rounds,
    TOGETHER: make_together,
}

if __name__ == "__main__":
    asked = set(sys.argv[1:])
    if unknown := asked - {row[0] for row in (*PLAN, *STUDY_PLAN, *LONG_PLAN)} - set(EXPERIMENTS):
        sys.exit(f"no such protocol in the plan: {', '.join(sorted(unknown))}")
    for row in PLAN:
        if not asked or row[0] in asked:
            print(f"wrote {make(*row)}")
    for name, preset, seed, lengths in LONG_PLAN:
        if not asked or name in asked:
            print(f"wrote {make_long(name, preset, seed, lengths)}")
    for name, preset, seeds in STUDY_PLAN:
        if not asked or name in asked:
            print(f"wrote {make_study(name, preset, seeds)}")
    for name, make_it in EXPERIMENTS.items():
        if not asked or name in asked:
            print(f"wrote {make_it()}")
