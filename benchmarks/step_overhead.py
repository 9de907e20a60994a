"""What does an intervention cost per training step, against the plain step?

Each method runs beside a plain twin on the same machine in the same process, block by block in alternation;
the figure is the ratio of the medians of the step's CPU time (one thread), with the quartiles of the per-block
ratios. Absolute times on a busy machine mean little; ratios hold to a few percent.

    python benchmarks/step_overhead.py                     # the default list
    python benchmarks/step_overhead.py --methods spectral cchain --batch 128 --steps 300 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as nnf

from supple.interventions import L2, CChain, Intervention, L2Init, ShrinkAndPerturb, SpectralRegularization

METHODS: dict[str, Callable[[], Intervention]] = {
    "l2": L2,
    "l2_init": L2Init,
    "spectral": SpectralRegularization,
    "cchain": CChain,
    "cchain_refresh4": lambda: CChain(refresh=4),
    "cchain_quarter": lambda: CChain(fraction=0.25),
    "cchain_quarter_refresh4": lambda: CChain(fraction=0.25, refresh=4),
    "shrink_perturb_every_step": lambda: ShrinkAndPerturb(
        shrink=0.999, perturb=1e-3, every=1, scaling="nature"
    ),
}
BLOCK = 5  # steps of one kind in a row: caches are warm after the first


def network(sizes: list[int]) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trainer(method: Callable[[], Intervention] | None, sizes: list[int], batch: int) -> Callable[[], None]:
    """One training step on random data, with the method attached or without."""
    model = network(sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if method is not None:
        method().attach(model, optimizer)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4096, sizes[0], generator=generator)
    targets = torch.randint(0, sizes[-1], (4096,), generator=generator)

    def step() -> None:
        rows = torch.randint(0, 4096, (batch,), generator=generator)
        optimizer.zero_grad()
        nnf.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()

    return step


def measure(name: str, sizes: list[int], batch: int, steps: int) -> dict[str, float | str | int]:
    """Alternate blocks of plain and treated steps; medians and the spread of the block ratios."""
    plain, treated = trainer(None, sizes, batch), trainer(METHODS[name], sizes, batch)
    for _ in range(10):
        plain()
        treated()
    times: dict[str, list[float]] = {"plain": [], "treated": []}
    for _ in range(max(1, steps // BLOCK)):
        for kind, step in (("plain", plain), ("treated", treated)):
            start = time.process_time()
            for _ in range(BLOCK):
                step()
            times[kind].append((time.process_time() - start) / BLOCK)
    ratios = sorted(b / a for a, b in zip(times["plain"], times["treated"], strict=True))
    return {
        "method": name,
        "batch": batch,
        "plain_ms": 1e3 * statistics.median(times["plain"]),
        "treated_ms": 1e3 * statistics.median(times["treated"]),
        "ratio": statistics.median(times["treated"]) / statistics.median(times["plain"]),
        "ratio_lower_quartile": ratios[len(ratios) // 4],
        "ratio_upper_quartile": ratios[3 * len(ratios) // 4],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[784, 256, 256, 256, 256, 10])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"MLP {'-'.join(map(str, options.sizes))}, Adam, batch {options.batch}, torch {torch.__version__}")
    rows = []
    for name in options.methods:
        rows.append(measure(name, options.sizes, options.batch, options.steps))
        row = rows[-1]
        print(
            f"{name:28s} {row['plain_ms']:7.2f} ms -> {row['treated_ms']:7.2f} ms   ratio {row['ratio']:.3f} "
            f"[{row['ratio_lower_quartile']:.3f}, {row['ratio_upper_quartile']:.3f}]"
        )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
