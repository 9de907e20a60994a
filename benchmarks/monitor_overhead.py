"""What a monitor costs: a training step that is looked at, against one that is not, in alternation on one machine.

An MLP of 4 hidden layers of 256 units, batch 128, Adam; or ResNet-18 at 32 × 32, batch 16, SGD. Nearly all of a
monitor's cost lies in the steps that are due. Whole blocks of 100 steps differ by some per cent from one to the next on
a shared machine, which hides a cost of 2 %; so what a look adds is timed by itself, beside plain steps, and the cost at
one look in 100 steps is computed from the medians: 1 + extra / (100 plain).

    PYTHONPATH=src python benchmarks/monitor_overhead.py [--network resnet18 --rounds 4] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from supple.models import resnet18
from supple.observe import Monitor

PROMISE = {"empty": 1.01, "gradients": 1.08, "economy": 1.02, "standard": 1.10}
EVERY = 100
TURN = 5  # steps of a turn, the last of which is due


def build(network: str = "mlp") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    if network == "resnet18":
        model: nn.Module = resnet18(10)
        return model, torch.optim.SGD(model.parameters(), lr=1e-3)
    sizes = (784, 256, 256, 256, 256)
    hidden = [m for i, o in itertools.pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(256, 10))
    return model, torch.optim.Adam(model.parameters(), lr=1e-4)


class Arm:
    """One network in training, watched or not."""

    def __init__(self, name: str, network: str) -> None:
        self.model, self.optimizer = build(network)
        generator = torch.Generator().manual_seed(1)
        shape = (128, 784) if network == "mlp" else (16, 3, 32, 32)
        self.x, self.y = torch.randn(shape, generator=generator), torch.arange(shape[0]) % 10
        if name != "plain":
            # "empty" is attached and never due; "gradients" reads those of every step and nothing else
            self.monitor = Monitor(
                self.model,
                self.optimizer,
                probe=(self.x, self.y),
                loss_fn=nn.functional.cross_entropy,
                every=TURN if name in ("economy", "standard") else lambda step: False,
                instruments=name if name in ("economy", "standard") else "economy",
                gradients_every=1 if name == "gradients" else None,
            )

    def step(self) -> float:
        """CPU seconds of this process for one step."""
        start = time.process_time()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        return time.process_time() - start


def measure(arm: Arm, plain: Arm, rounds: int) -> tuple[float, float]:
    """Medians of what a look adds to the steps of its turn, and of a plain step beside it."""
    extra, beside = [], []
    for _ in range(rounds):
        pairs = [(arm.step(), plain.step()) for _ in range(TURN)]
        step = statistics.median(b for _, b in pairs)
        # the step before the due one keeps outputs for the churn of the run
        extra.append(pairs[-1][0] + pairs[-2][0] - 2 * step)
        beside.append(step)
    return statistics.median(extra), statistics.median(beside)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--network", choices=("mlp", "resnet18"), default="mlp")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain = Arm("plain", options.network)
    for _ in range(50 if options.network == "mlp" else 2):
        plain.step()
    rows = {}
    for name, promise in PROMISE.items():
        arm = Arm(name, options.network)
        measure(arm, plain, 3 if options.network == "mlp" else 1)
        if name in ("empty", "gradients"):
            pairs = [
                (arm.step(), plain.step())
                for _ in range((20 if options.network == "mlp" else 2) * options.rounds)
            ]
            step = statistics.median(b for _, b in pairs)
            ratio = statistics.median(a for a, _ in pairs) / step
        else:
            extra, step = measure(arm, plain, options.rounds)
            ratio = 1 + extra / (EVERY * step)
        rows[name] = {"ratio": ratio, "promise": promise, "step_ms": 1e3 * step}
        print(
            f"{name:10} {ratio:.3f} x the plain step of {1e3 * step:.2f} ms (promise {promise:.2f})",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
