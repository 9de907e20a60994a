"""Compute the committed results: ``python results/make.py [NAME ...]``; what is finished is not run again.

The image protocols need SUPPLE_DATA.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import supple
from supple.bench import collect, grid, protocols, with_engine
from supple.bench.lab import run_lab
from supple.bench.lab.cases import EVALUATION, TRAIN
from supple.bench.lab.matrix import run_matrix
from supple.bench.lab.trials import run_trials
from supple.bench.rounds import run_rounds
from supple.bench.studies import STUDIES
from supple.cli.train import train

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs" / "results"
METHODS = (
    "plain,fresh,linear,l2,l2init,shrink_perturb,cbp,redo,regrama,spectral,crelu,fourier,cchain,layernorm"
)

#: study, preset, seeds
STUDY_PLAN = (
    ("grama-vs-dormant", "small", 5), ("predicts", "demo", 3), ("rl-gym", "small", 5), ("rl-minatar", "small", 3),
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
    """Truth and verdicts of the lab; the table keeps what the page is made of."""
    folder = RUNS / "lab" / "small"
    rows = run_lab(folder, "small", say=print)
    for row in rows:
        row["verdicts"] = {
            name: {k: v for k, v in verdict.items() if k in ("status", "severity", "probability")}
            for name, verdict in row["verdicts"].items()
        }
    command = ["supple bench run lab --preset small", "supple bench report runs/bench/lab/small"]
    for half in (TRAIN, EVALUATION):
        _write("lab", f"{half}.json", command, preset="small", records=[r for r in rows if r["half"] == half])
    return HERE / "lab" / "evaluation.json"


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


EXPERIMENTS = {"lab": make_lab, "matrix": make_matrix, "trials": make_trials, "lm-rounds": make_rounds}

if __name__ == "__main__":
    asked = set(sys.argv[1:])
    if unknown := asked - {row[0] for row in (*PLAN, *STUDY_PLAN)} - set(EXPERIMENTS):
        sys.exit(f"no such protocol in the plan: {', '.join(sorted(unknown))}")
    for row in PLAN:
        if not asked or row[0] in asked:
            print(f"wrote {make(*row)}")
    for name, preset, seeds in STUDY_PLAN:
        if not asked or name in asked:
            print(f"wrote {make_study(name, preset, seeds)}")
    for name, make_it in EXPERIMENTS.items():
        if not asked or name in asked:
            print(f"wrote {make_it()}")
