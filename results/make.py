"""Compute the committed results: ``python results/make.py [PROTOCOL ...]``; what is finished is not run again."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import torch

import supple
from supple.bench import collect, grid, protocols, with_engine
from supple.bench.studies import STUDIES
from supple.cli.train import train

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs" / "results"
METHODS = "plain,fresh,linear,l2,l2init,shrink_perturb,cbp,redo,regrama,spectral,crelu,fourier,cchain,layernorm"

#: study, preset, seeds
STUDY_PLAN = (("grama-vs-dormant", "small", 5),)
#: protocol, preset, methods, seeds
PLAN = (
    ("digits-permuted", "demo", METHODS, 5),
    ("digits-random-labels", "demo", METHODS, 5),
    ("permuted-mnist", "small", METHODS, 5),
    ("label-flipping-mnist", "small", METHODS, 5),
    ("random-label-mnist", "small", METHODS, 5),
    ("concept-shift-abrupt", "small", METHODS, 5),
)


def make(protocol: str, preset: str, methods: str, seeds: int) -> Path:
    """Run one row of the plan and write its table, with the commands that give the same."""
    out = RUNS / preset
    specs = grid(protocol, methods.split(","), list(range(seeds)), preset=preset)
    train(f"{protocol}, {preset}", with_engine(specs, "auto"), out)
    wanted = set(methods.split(","))
    rows = [r for r in collect(out / protocol).to_dicts() if r["method"] in wanted]
    shown = out.relative_to(HERE.parent)
    table = {
        "command": [
            f"supple bench run {protocol} --preset {preset} --methods {methods} --seeds {seeds} --out {shown}",
            f"supple bench report {shown}/{protocol} --json -",
        ],
        "versions": {"supple": supple.__version__, "torch": torch.__version__},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "protocol": protocols.create(protocol, preset).to_dict(),
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


if __name__ == "__main__":
    asked = set(sys.argv[1:])
    if unknown := asked - {row[0] for row in (*PLAN, *STUDY_PLAN)}:
        sys.exit(f"no such protocol in the plan: {', '.join(sorted(unknown))}")
    for row in PLAN:
        if not asked or row[0] in asked:
            print(f"wrote {make(*row)}")
    for name, preset, seeds in STUDY_PLAN:
        if not asked or name in asked:
            print(f"wrote {make_study(name, preset, seeds)}")
