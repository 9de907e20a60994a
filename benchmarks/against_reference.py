"""Interventions beside the public reference code: cost per step of both against the same plain step.

The reference code is not part of this project. Fetch it yourself and say where it is; what is not given is left out:

    git clone https://github.com/shibhansh/loss-of-plasticity    # continual backprop (Dohare et al. 2024)
    pip install --no-deps trac-optimizer                                  # TRAC (Muppidi et al. 2024)
    PYTHONPATH=src python benchmarks/against_reference.py --cbp loss-of-plasticity --trac

Arms take turns, a few steps each, in one process of one thread; a ratio is that of the medians of CPU time. For TRAC
the distance of the weights after the same steps is printed too, beside how far they moved at all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from supple.interventions import TRAC, ContinualBackprop
from supple.models import MLP

BLOCK = 5
#: sizes, batch, optimizer of the authors: what the promises are about
CBP_CASES = (
    ((784, 2000, 2000, 2000, 10), 1, "sgd"),
    ((784, 256, 256, 10), 32, "sgd"),
    ((784, 256, 256, 10), 32, "adam"),
)
Step = Callable[[], None]


def data(inputs: int, batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """The same batches for every arm."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, inputs, generator=generator)
    y = torch.randint(10, (1024,), generator=generator)

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.randint(1024, (batch,), generator=generator)
        return x[rows], y[rows]

    return draw


def loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, draw: Callable[[], tuple[Tensor, Tensor]]
) -> Step:
    def step() -> None:
        x, y = draw()
        optimizer.zero_grad()
        nnf.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def compare(arms: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of a step per arm."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for step in arms.values():
        for _ in range(4 * BLOCK):
            step()
    for _ in range(rounds):
        for name, step in arms.items():
            start = time.process_time()
            for _ in range(BLOCK):
                step()
            times[name].append((time.process_time() - start) / BLOCK)
    return {name: statistics.median(t) for name, t in times.items()}


def continual_backprop(folder: Path, rounds: int) -> None:
    sys.path.insert(0, str(folder))
    from lop.algos.cbp import ContinualBackprop as Reference
    from lop.nets.deep_ffnn import DeepFFNN

    for sizes, batch, kind in CBP_CASES:

        def made(sizes: tuple[int, ...] = sizes, kind: str = kind) -> tuple[nn.Module, torch.optim.Optimizer]:
            torch.manual_seed(0)
            model = MLP(sizes)
            cls: Any = torch.optim.SGD if kind == "sgd" else torch.optim.Adam
            return model, cls(model.parameters(), lr=1e-3)

        arms: dict[str, Step] = {"plain": loop(*made(), data(sizes[0], batch))}
        for name, utility in (("ours", "nature"), ("ours, lazy", "lazy")):
            model, optimizer = made()
            rule = ContinualBackprop(replacement_rate=1e-5, maturity=100, utility=utility)
            rule.attach(model, optimizer, inputs=torch.zeros(2, sizes[0]))
            arms[name] = loop(model, optimizer, data(sizes[0], batch))
        net = DeepFFNN(sizes[0], num_features=sizes[1], num_outputs=10, num_hidden_layers=len(sizes) - 2)
        theirs = Reference(
            net, step_size=1e-3, loss="nll", opt=kind, replacement_rate=1e-5, maturity_threshold=100
        )
        draw = data(sizes[0], batch)
        arms["reference"] = lambda theirs=theirs, draw=draw: theirs.learn(*draw())
        tell(f"continual backprop, {'-'.join(map(str, sizes))}, batch {batch}, {kind}", compare(arms, rounds))


def trac(rounds: int) -> None:
    from trac_optimizer import start_trac

    with tempfile.TemporaryDirectory() as folder:  # its step writes a line into a file each time
        _trac(rounds, lambda: start_trac(f"{folder}/log.txt", torch.optim.Adam))


def _trac(rounds: int, reference: Callable[[], Any]) -> None:
    models = []
    arms: dict[str, Step] = {}
    for name in ("plain", "ours", "reference"):
        torch.manual_seed(0)
        model = MLP((784, 256, 256, 10))
        maker: Any = reference() if name == "reference" else torch.optim.Adam
        optimizer = maker(model.parameters(), lr=1e-3)
        if name == "ours":
            TRAC().attach(model, optimizer)
        arms[name] = loop(model, optimizer, data(784, 128))
        models.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone())
        models.append(model)
    tell("TRAC over Adam, 784-256-256-10, batch 128", compare(arms, rounds))
    start, ours, theirs = models[0], models[3], models[5]
    ends = [torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in (ours, theirs)]
    apart, moved = float((ends[0] - ends[1]).norm()), float((ends[1] - start).norm())
    steps = BLOCK * (rounds + 4)
    print(f"  weights after {steps} equal steps: apart by {apart:.3g}, moved by {moved:.3g}")


def tell(title: str, medians: dict[str, float]) -> None:
    base = medians["plain"]
    print(f"{title}: plain step {1e3 * base:.2f} ms CPU, torch {torch.__version__}")
    for name, seconds in medians.items():
        if name != "plain":
            print(f"  {name:<12} {seconds / base:.2f} x the plain step", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cbp", type=Path, help="folder that holds lop/")
    parser.add_argument("--trac", action="store_true", help="compare with the installed trac-optimizer")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cbp is None and not options.trac:
        parser.error("give --cbp FOLDER, --trac, or both")
    if options.cbp is not None:
        if not (options.cbp / "lop").is_dir():
            parser.error(f"no folder lop in {options.cbp}")
        continual_backprop(options.cbp, options.rounds)
    if options.trac:
        trac(options.rounds)


if __name__ == "__main__":
    main()
