"""What does an intervention cost per training step, against the plain step?

Each method runs beside a plain twin on the same machine in the same process, block by block in alternation;
the figure is the ratio of the medians of the step's CPU time (one thread), with the quartiles of the per-block
ratios. Absolute times on a busy machine mean little; ratios hold to a few percent.

    python benchmarks/step_overhead.py                     # the default list
    python benchmarks/step_overhead.py --methods spectral cchain --batch 128 --steps 300 --json out.json
    python benchmarks/step_overhead.py --methods cbp cbp_lazy --sizes 784 256 256 10 --batch 32 --optimizer sgd
    python benchmarks/step_overhead.py --network resnet18 --methods cbp redo regrama --batch 16 --steps 30

CBP has the rate 1e-5 of the published MLP runs. ReDo and ReGraMa act on every 100th step here, `regrama_task` on the
first step of each task of 100: so the figures contain the steps after a reset, in which young rows have a step count
of their own.
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

from supple.interventions import (
    CCBP,
    L2,
    TRAC,
    CChain,
    ContinualBackprop,
    FeatureRank,
    Handle,
    Intervention,
    L2Init,
    Parseval,
    ReDo,
    ReGraMa,
    SelfNormalizedReset,
    ShrinkAndPerturb,
    SpectralRegularization,
    Wasserstein,
    WeightClipping,
)
from supple.models.resnet import resnet18

TASK = 100  # steps
METHODS: dict[str, Callable[[], Intervention]] = {
    "cbp": lambda: ContinualBackprop(replacement_rate=1e-5, maturity=10),
    "cbp_nature": lambda: ContinualBackprop(replacement_rate=1e-5, maturity=10, utility="nature"),
    "cbp_lazy": lambda: ContinualBackprop(replacement_rate=1e-5, maturity=10, utility="lazy"),
    "redo": lambda: ReDo(tau=0.1, every=TASK),
    "regrama": lambda: ReGraMa(tau=0.1, every=TASK),
    "regrama_task": lambda: ReGraMa(tau=0.1, every="task"),
    "snr": SelfNormalizedReset,
    "ccbp": CCBP,
    "l2": L2,
    "l2_init": L2Init,
    "wasserstein": Wasserstein,
    "parseval": Parseval,
    "feature_rank": FeatureRank,
    "clipping": WeightClipping,
    "trac": TRAC,
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


def network(kind: str, sizes: list[int]) -> tuple[nn.Module, tuple[int, ...], int]:
    """The network, the shape of one input, and the number of classes."""
    torch.manual_seed(0)
    if kind == "resnet18":
        return resnet18(), (3, 32, 32), 10
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), (sizes[0],), sizes[-1]


def trainer(method: Callable[[], Intervention] | None, options: argparse.Namespace) -> Callable[[], None]:
    """One training step on random data, with the method attached or without."""
    model, shape, classes = network(options.network, options.sizes)
    makers = {
        "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
        "fused_adam": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    }
    optimizer = makers[options.optimizer](model.parameters())
    generator = torch.Generator().manual_seed(0)
    rows = 4096 if options.network == "mlp" else 256
    inputs = torch.randn(rows, *shape, generator=generator)
    targets = torch.randint(0, classes, (rows,), generator=generator)
    handle: Handle | None = None
    if method is not None:
        handle = method().attach(model, optimizer, inputs=inputs[:2])

    def step() -> None:
        picked = torch.randint(0, rows, (options.batch,), generator=generator)
        if handle is not None and handle.step % TASK == TASK - 1:
            handle.task()
        optimizer.zero_grad()
        nnf.cross_entropy(model(inputs[picked]), targets[picked]).backward()
        optimizer.step()

    return step


def measure(name: str, options: argparse.Namespace) -> dict[str, float | str | int]:
    """Alternate blocks of plain and treated steps; medians and the spread of the block ratios."""
    plain, treated = trainer(None, options), trainer(METHODS[name], options)
    for _ in range(options.warmup):
        plain()
        treated()
    times: dict[str, list[float]] = {"plain": [], "treated": []}
    for _ in range(max(1, options.steps // BLOCK)):
        for kind, step in (("plain", plain), ("treated", treated)):
            start = time.process_time()
            for _ in range(BLOCK):
                step()
            times[kind].append((time.process_time() - start) / BLOCK)
    ratios = sorted(b / a for a, b in zip(times["plain"], times["treated"], strict=True))
    return {
        "method": name,
        "batch": options.batch,
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
    parser.add_argument("--network", choices=["mlp", "resnet18"], default="mlp")
    parser.add_argument("--optimizer", choices=["adam", "fused_adam", "sgd"], default="adam")
    parser.add_argument("--sizes", type=int, nargs="+", default=[784, 256, 256, 256, 256, 10])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=10, help="steps before the first measured one")
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kind = f"MLP {'-'.join(map(str, options.sizes))}" if options.network == "mlp" else "ResNet-18, 32 x 32"
    print(f"{kind}, {options.optimizer}, batch {options.batch}, torch {torch.__version__}")
    rows = []
    for name in options.methods:
        rows.append(measure(name, options))
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
