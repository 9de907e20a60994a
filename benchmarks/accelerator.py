"""Absolute times on an accelerator: a training step with each tool attached, a spectrum, a kernel.

Arms take turns round by round; each time is the median over rounds. Small networks are bound by the
launches of the host there, so that every extra operator shows.

    PYTHONPATH=src python benchmarks/accelerator.py [--rounds 5] [--steps 100]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import supple
from supple import functional as F
from supple.interventions import CChain, ContinualBackprop, ReGraMa, SpectralRegularization
from supple.models import resnet18

Attach = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], Any]
LOSS = nn.CrossEntropyLoss()


def mlp() -> nn.Module:
    sizes = (784, 256, 256, 256, 256)
    hidden = [m for i, o in itertools.pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(256, 10))


def watch(bundle: str) -> Attach:
    def attach(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Any:
        probe = x[:64], y[:64]
        return supple.Monitor(model, optimizer, probe=probe, loss_fn=LOSS, every=100, instruments=bundle)

    return attach


ARMS: dict[str, Attach | None] = {
    "plain": None,
    "Monitor economy, every 100": watch("economy"),
    "Monitor standard, every 100": watch("standard"),
    "ReGraMa, every 1000": lambda m, o, x, y: ReGraMa().attach(m, o, inputs=x),
    "ContinualBackprop": lambda m, o, x, y: ContinualBackprop().attach(m, o, inputs=x),
    "SpectralRegularization": lambda m, o, x, y: SpectralRegularization().attach(m, o, inputs=x),
    "CChain": lambda m, o, x, y: CChain().attach(m, o, inputs=x),
}


def seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def stepper(
    build: Callable[[], nn.Module], x: Tensor, y: Tensor, attach: Attach | None
) -> Callable[[], None]:
    torch.manual_seed(0)
    model = build().cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    handle = attach(model, optimizer, x, y) if attach else None

    def step(_held: Any = handle) -> None:
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()

    return step


def steps(name: str, build: Callable[[], nn.Module], x: Tensor, rounds: int, repeats: int) -> None:
    y = torch.randint(0, 10, (len(x),)).cuda()
    arms = {arm: stepper(build, x.cuda(), y, attach) for arm, attach in ARMS.items()}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for work in arms.values():
        seconds(work, 20)
    for _ in range(rounds):
        for arm, work in arms.items():
            times[arm].append(seconds(work, repeats))
    plain = statistics.median(times["plain"])
    for arm, found in times.items():
        middle = statistics.median(found)
        print(f"{name:24} {arm:28} {1e3 * middle:8.2f} ms {middle / plain:6.2f} x", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no accelerator here; nothing was measured", file=sys.stderr)
        return 0
    print(torch.cuda.get_device_name(), torch.__version__)
    steps("MLP 4x256, batch 128", mlp, torch.randn(128, 784), options.rounds, options.steps)
    steps("ResNet-18, batch 128", resnet18, torch.randn(128, 3, 32, 32), options.rounds, options.steps)
    weight = torch.randn(4096, 11008, device="cuda")
    for name, work in (
        ("torch.linalg.svdvals", lambda: torch.linalg.svdvals(weight)),
        ("singular_values", lambda: F.singular_values(weight)),
    ):
        work()
        print(f"4096 x 11008: {name} {statistics.median(seconds(work) for _ in range(3)):.3f} s")
    net = nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    ).cuda()
    inputs = torch.randn(256, 784, device="cuda")
    supple.ntk(net, inputs, kind="full")
    kernel = statistics.median(seconds(lambda: supple.ntk(net, inputs, kind="full")) for _ in range(3))
    print(f"NTK of 784-256-256-10, 256 samples, full: {1e3 * kernel:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
