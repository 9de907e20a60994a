"""Whole runs beside the scripts of the reference repository: permuted MNIST and Continual ImageNet, at equal work.

The reference code (Dohare et al. 2024) is not part of this project. Fetch it yourself and say where it is:

    git clone https://github.com/shibhansh/loss-of-plasticity
    PYTHONPATH=src python benchmarks/against_scripts.py loss-of-plasticity

Both sides are started as a user starts them, with one thread, on the same random images in each one's own layout, with
the same network, batch, optimizer, samples, passes and tasks. A figure is CPU seconds of one task: a run of several
tasks less a run of one, over the tasks in between, so that imports and reading cost nothing; both take turns, medians
over the repeats. What differs: the reference script judges the 200 held-out images after every pass, ours once a task;
the permuted-MNIST script computes ranks of 2,000 features once a task; ours writes records and checkpoints.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

CLASSES, PER_CLASS = 20, 700
IMAGES = 60_000
#: ours and theirs; continual backprop as published for each protocol
METHODS = ("bp", "cbp")
OURS = {"bp": "plain", "cbp": "cbp"}


def write_mnist(root: Path) -> None:
    """60,000 random images in both layouts."""
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (IMAGES, 28, 28), np.uint8)
    y = (np.arange(IMAGES) % 10).astype(np.uint8)
    folder = root / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, count in (("train", IMAGES), ("t10k", 10_000)):
        for kind, array in (("images-idx3", x[:count]), ("labels-idx1", y[:count])):
            head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            with gzip.open(folder / f"{split}-{kind}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(head + array.tobytes())
    flat = torch.from_numpy(x.reshape(IMAGES, 784)).float() / 255
    with (root / "data" / "mnist_").open("wb") as file:
        pickle.dump((flat, torch.from_numpy(y).long(), flat[:10], torch.zeros(10)), file)


def write_imagenet(root: Path) -> None:
    """Random images of a few classes in both layouts."""
    draw = np.random.default_rng(1)
    x = draw.integers(0, 256, (CLASSES, PER_CLASS, 3, 32, 32), np.uint8)
    (root / "data" / "classes").mkdir(parents=True, exist_ok=True)
    for number, images in enumerate(x):
        np.save(root / "data" / "classes" / f"{number}.npy", images / np.float32(255))
    with (root / "class_order").open("wb") as file:
        pickle.dump([np.arange(CLASSES)], file)
    folder = root / "data" / "Imagenet32_train_npz"
    folder.mkdir()
    labels = np.repeat(np.arange(1, CLASSES + 1), PER_CLASS)
    np.savez(folder / "train_data_batch_1.npz", data=x.reshape(-1, 3072), labels=labels)


def theirs_mnist(method: str, tasks: int) -> tuple[str, dict[str, Any]]:
    return "lop.permuted_mnist.online_expr", {
        "agent": method, "opt": "sgd", "step_size": 0.03, "num_features": 100, "num_hidden_layers": 3,
        "mini_batch_size": 16, "num_tasks": tasks, "change_after": IMAGES, "replacement_rate": 1e-4,
        "maturity_threshold": 100, "mt": 100, "util_type": "adaptable_contribution", "data_file": "out",
    }  # fmt: skip


def theirs_imagenet(method: str, tasks: int) -> tuple[str, dict[str, Any]]:
    return "lop.imagenet.single_expr", {
        "agent": method, "opt": "sgd", "step_size": 0.01, "momentum": 0.9, "num_showings": 10, "num_classes": 2,
        "new_heads": True, "mini_batch_size": 100, "num_tasks": tasks, "run_idx": 0, "replacement_rate": 3e-4,
        "maturity_threshold": 100, "data_file": "out",
    }  # fmt: skip


CASES: dict[str, tuple[Callable[[str, int], tuple[str, dict[str, Any]]], str, int]] = {
    "permuted MNIST, 784-100-100-100-10, batch 16, 60,000 images a task": (theirs_mnist, "permuted-mnist", 2),
    "Continual ImageNet, 10 passes of 1,200 images a task, batch 100": (
        theirs_imagenet,
        "continual-imagenet",
        2,
    ),
}


def cpu_seconds(command: list[str], folder: Path, path: str) -> float:
    """CPU time of a command and its children."""
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
           "SUPPLE_DATA": str(folder / "data")}  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-1500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def theirs(folder: Path, code: Path, script: str, settings: dict[str, Any]) -> float:
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return cpu_seconds([sys.executable, "-m", script, "-c", "config.json"], folder, str(code))


def ours(folder: Path, protocol: str, method: str, tasks: int) -> float:
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, "-m", "supple", "bench", "run", protocol, "--preset", "day", "--tasks", str(tasks),
            "--methods", OURS[method], "--seeds", "1", "--workers", "1", "--engine", "loop", "--out", out,
        ]  # fmt: skip
        return cpu_seconds(command, folder, os.environ.get("PYTHONPATH", ""))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder that holds lop/")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    code = given.folder.resolve()
    if not (code / "lop").is_dir():
        parser.error(f"no folder lop in {code}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mnist(folder)
        write_imagenet(folder)
        for title, (settings, protocol, more) in CASES.items():
            print(f"{title}; torch {torch.__version__}")
            for method in METHODS:
                times: dict[str, list[float]] = {"ours": [], "theirs": []}
                for _ in range(given.repeats):
                    own = [ours(folder, protocol, method, n) for n in (1, 1 + more)]
                    their = [theirs(folder, code, *settings(method, n)) for n in (1, 1 + more)]
                    times["ours"].append((own[1] - own[0]) / more)
                    times["theirs"].append((their[1] - their[0]) / more)
                mine, other = (statistics.median(times[k]) for k in ("ours", "theirs"))
                print(f"  {method}: {mine:.2f} s a task, theirs {other:.2f}: {other / mine:.2f} times as fast",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
