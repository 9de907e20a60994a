"""Time of a scan against WeightWatcher on the same files in alternation, and peak memory on a large checkpoint.

    python benchmarks/scan_speed.py --weightwatcher PYTHON        an interpreter that has weightwatcher and torch
    python benchmarks/scan_speed.py --memory 8                    gigabytes of a sharded checkpoint, removed afterwards
    python benchmarks/scan_speed.py --need                        what a matrix took beside what `--memory` reckons with

Every run is a process of its own with one thread; CPU seconds from the open file to the answer, without imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

SUPPLE = """
import sys, time
from supple.scan import scan
begun = time.process_time()
report = scan(sys.argv[1], estimate=sys.argv[2] == "estimate")
assert not report.failures and len(report.records)
print(time.process_time() - begun)
"""
WEIGHTWATCHER = """
import sys, time, logging, io, contextlib
logging.disable(logging.CRITICAL)
with contextlib.redirect_stdout(io.StringIO()):
    import torch, weightwatcher as ww
    from safetensors.torch import load_file
    torch.set_num_threads(1)
begun = time.process_time()
state = load_file(sys.argv[1])
net = torch.nn.Sequential(*[torch.nn.Linear(w.shape[1], w.shape[0], bias=False) for w in state.values()])
net.load_state_dict({f"{i}.weight": w for i, w in enumerate(state.values())})
with contextlib.redirect_stdout(io.StringIO()):
    table = ww.WeightWatcher(model=net).analyze(plot=False, svd_method=sys.argv[2])
assert len(table) == len(state)
print(time.process_time() - begun)
"""
WATCHED = """
import resource, sys, threading, time
from supple.scan import scan
peak, done = [0], threading.Event()
def anonymous():
    while not done.wait(0.02):
        lines = open("/proc/self/status").read().splitlines()
        peak[0] = max(peak[0], *(int(l.split()[1]) for l in lines if l.startswith("RssAnon")))
threading.Thread(target=anonymous, daemon=True).start()
begun = time.perf_counter()
estimate = sys.argv[2] == "estimate"
report = scan(sys.argv[1], estimate=estimate, budget=None if estimate else 300)  # the largest come first
done.set()
assert not report.failures
layers = len({(r.layer, r.part) for r in report.records})
print(layers, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, peak[0] / 1024, time.perf_counter() - begun)
"""
NEEDED = """
import resource, sys
from supple.scan import scan
estimate = sys.argv[3] == "estimate"
scan(sys.argv[2], estimate=estimate)  # a small one first: what the libraries set up is not the matrix's
page = resource.getpagesize()
before = int(open("/proc/self/statm").read().split()[1]) * page
report = scan(sys.argv[1], estimate=estimate)
assert len(report.records)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20)
"""


def timed(python: str, code: str, *arguments: str) -> list[float]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", code, *arguments], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return [float(v) for v in done.stdout.split()]


def compare(python: str, repeats: int, only: str, folder: Path) -> None:
    """Exact and estimated scans beside WeightWatcher's two ways, each file in turn."""
    g = torch.Generator().manual_seed(0)
    stacks = {
        "8 of 1024 x 1536": [(1024, 1536)] * 8,
        "1 of 4096 x 4096": [(4096, 4096)],
        "1 of 4096 x 11008": [(4096, 11008)],
    }
    ways = [
        ("supple, exact", sys.executable, SUPPLE, "exact"), ("supple, estimated", sys.executable, SUPPLE, "estimate"),
        ("weightwatcher, accurate", python, WEIGHTWATCHER, "accurate"),
        ("weightwatcher, fast", python, WEIGHTWATCHER, "fast"),
    ]  # fmt: skip
    for name, shapes in ((n, s) for n, s in stacks.items() if only in n):
        path = folder / "stack.safetensors"
        save_file(
            {f"{i}.weight": torch.randn(*s, generator=g) / s[1] ** 0.5 for i, s in enumerate(shapes)}, path
        )
        found: dict[str, list[float]] = {label: [] for label, *_ in ways}
        for _ in range(repeats):
            for label, *call in ways:
                found[label] += timed(call[0], call[1], str(path), call[2])
        medians = {label: statistics.median(v) for label, v in found.items()}
        print(f"\n{name} (median of {repeats})")
        for label, value in medians.items():
            against = "  ".join(
                f"{medians[w] / value:6.1f} x faster than {w}"
                for w in medians
                if w.startswith("weightwatcher")
            )
            print(f"  {label:<24} {value:8.2f} s   {against if label.startswith('supple') else ''}")


def memory(gigabytes: float, folder: Path) -> None:
    """Peak of both paths on a sharded checkpoint of bf16, fp16 and fp32 tensors; the exact one for five minutes."""
    needed = gigabytes * 1e9
    if shutil.disk_usage(folder).free < 1.2 * needed:
        sys.exit(f"{folder} has not {1.2 * gigabytes:.1f} GB free")
    index, total, shard, number = {}, 0, {}, 0
    g = torch.Generator().manual_seed(0)
    kinds = (torch.bfloat16, torch.float16, torch.float32)
    while total < needed:
        shape = (4096, 11008) if number < 3 else (2048, 5504)
        tensor = (torch.randn(*shape, generator=g) / shape[1] ** 0.5).to(kinds[number % 3])
        name, file = f"layer{number}.weight", f"shard{number // 8:04}.safetensors"
        shard[name], index[name] = tensor, file
        total, number = total + tensor.numel() * tensor.element_size(), number + 1
        if number % 8 == 0 or total >= needed:
            save_file(shard, folder / file)
            shard = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    largest = 4096 * 11008 * 4 / 2**20
    print(
        f"{total / 1e9:.1f} GB, {number} matrices, largest tensor {largest:.0f} MiB, bar {3 * largest + 500:.0f} MiB"
    )
    for way in ("estimate", "exact"):
        layers, resident, own, seconds = timed(sys.executable, WATCHED, str(folder), way)
        print(
            f"  {way:<9} {layers:.0f} matrices, peak {resident:.0f} MiB (anonymous {own:.0f}), {seconds:.0f} s"
        )


def need(folder: Path) -> None:
    """Peak of resident memory (mapped pages of the file included) over that before, and what was reckoned."""
    from supple.scan.memory import MIB
    from supple.scan.memory import need as reckoned
    from supple.scan.sources import open_checkpoint

    g = torch.Generator().manual_seed(0)
    save_file({"w.weight": torch.randn(300, 300, generator=g)}, folder / "small.safetensors")
    for shape in ((1536, 1536), (1024, 8192), (6000, 900)):
        for kind in (torch.float32, torch.bfloat16):
            path = folder / "one.safetensors"
            save_file({"w.weight": torch.randn(*shape, generator=g).to(kind)}, path)
            for way in ("exact", "estimate"):
                (took,) = timed(sys.executable, NEEDED, str(path), str(folder / "small.safetensors"), way)
                entry = next(iter(open_checkpoint(path)))
                said = reckoned(entry, way == "estimate") / MIB
                print(f"  {shape} {entry.dtype:<5}{way:<9} took {took:6.0f} MiB, reckoned {said:6.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weightwatcher", metavar="PYTHON")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="stacks whose name has this in it")
    parser.add_argument("--memory", type=float, metavar="GB")
    parser.add_argument("--need", action="store_true")
    parser.add_argument("--folder", type=Path, help="where files are written (default: the system's)")
    given = parser.parse_args()
    for run in (
        given.weightwatcher and (lambda f: compare(given.weightwatcher, given.repeats, given.only, f)),
        given.memory and (lambda f: memory(given.memory, f)),
        given.need and need,
    ):
        if run:
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                run(Path(folder))


if __name__ == "__main__":
    main()
