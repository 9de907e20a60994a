"""What a monitor costs: time of a training step with and without it, in alternation on one machine.

An MLP of 4 hidden layers of 256 units, batch 128, Adam (DESIGN §8). Arms take turns block by block, so that
a busy machine disturbs all alike; each ratio is the median over rounds of (block with) / (block without).

    PYTHONPATH=src python benchmarks/monitor_overhead.py [--rounds 9] [--json FILE]
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

from supple.observe import Monitor

PROMISE = {"empty": 1.01, "economy": 1.02, "standard": 1.10}
EVERY = 100


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    sizes = (784, 256, 256, 256, 256)
    hidden = [m for i, o in itertools.pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(256, 10))
    return model, torch.optim.Adam(model.parameters(), lr=1e-4)


class Arm:
    """One network in training, watched or not."""

    def __init__(self, name: str) -> None:
        self.model, self.optimizer = build()
        generator = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(128, 784, generator=generator), torch.arange(128) % 10
        if name != "plain":
            # "empty" is attached and never due
            settings = (
                {"every": EVERY, "instruments": name} if name != "empty" else {"every": lambda step: False}
            )
            self.monitor = Monitor(
                self.model,
                self.optimizer,
                probe=(self.x, self.y),
                loss_fn=nn.functional.cross_entropy,
                **settings,
            )

    def block(self, steps: int) -> float:
        """CPU seconds of this process for some steps."""
        start = time.process_time()
        for _ in range(steps):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.y).backward()
            self.optimizer.step()
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    arms = {name: Arm(name) for name in ("plain", *PROMISE)}
    for arm in arms.values():
        arm.block(EVERY)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.rounds):
        for name, arm in arms.items():
            times[name].append(arm.block(EVERY))
    base = times["plain"]
    rows = {
        name: {
            "ratio": statistics.median(t / b for t, b in zip(times[name], base, strict=True)),
            "promise": promise,
            "step_ms": 1e3 * statistics.median(times[name]) / EVERY,
        }
        for name, promise in PROMISE.items()
    }
    step = 1e3 * statistics.median(base) / EVERY
    print(f"plain step: {step:.3f} ms CPU, torch {torch.__version__}, one thread")
    for name, row in rows.items():
        print(f"{name:10} {row['ratio']:.3f} x the plain step (promise {row['promise']:.2f})")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
