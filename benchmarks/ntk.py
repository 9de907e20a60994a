"""Cost of the neural tangent kernel: hooks against ``vmap(jacrev)``, same machine, same run.

    python benchmarks/ntk.py               # MLP 784-256-256-10, 256 samples: about a minute
    python benchmarks/ntk.py --samples 64  # seconds

CPU seconds of the process on one thread: the best of several runs for ours, one run for the reference (it
takes long and its noise is small beside the ratio). Promise: at least 300 x for "full" at 256 samples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from supple import ntk

PROMISE = 300


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def cpu_seconds(run: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """(best CPU seconds, the last result)."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        result = run()
        best = min(best, time.process_time() - start)
    return best, result


def reference(model: nn.Module, x: Tensor, kind: str) -> Tensor:
    """Per-sample Jacobians by reverse mode under vmap, then J J^T; J has N * C * P entries."""
    parameters = {k: p.detach() for k, p in model.named_parameters()}

    def outputs(p: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, p, (sample[None],))[0]

    jacobians = vmap(jacrev(outputs), (None, 0))(parameters, x)
    if kind == "full":
        rows = torch.cat([j.flatten(2) for j in jacobians.values()], 2).flatten(0, 1)
        return rows @ rows.mT
    rows = torch.cat([j.flatten(1) for j in jacobians.values()], 1)
    return rows @ rows.mT


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=256, help="probe samples (default 256)")
    parser.add_argument("--repeats", type=int, default=15, help="runs of ours, the best counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = network(), torch.randn(arguments.samples, 784)
    print(
        f"MLP 784-256-256-10, {arguments.samples} samples, torch {torch.__version__}, one thread, CPU seconds"
    )
    for kind in ("trace", "full"):
        slow, wanted = cpu_seconds(lambda k=kind: reference(model, x, k), 1)
        fast, found = cpu_seconds(lambda k=kind: ntk(model, x, kind=k), arguments.repeats)
        error = float((found - wanted).norm() / found.norm())
        note = ""
        if kind == "full" and arguments.samples == 256:
            note = f"  promise {PROMISE} x: {'kept' if slow / fast >= PROMISE else 'MISSED'}"
        print(
            f"  {kind:6} vmap(jacrev) {slow:8.3f}  hooks {fast:8.4f}  ratio {slow / fast:7.1f} x"
            f"  difference {error:.1e}{note}"
        )


if __name__ == "__main__":
    main()
