"""Seconds of `supple.diagnose` without step 0, each network in a process of its own, twice.

    python benchmarks/diagnose_speed.py              # both networks: a minute or two
    python benchmarks/diagnose_speed.py --network mlp

The first call also pays for what torch and Supple import only when it is needed. Promises on two idle cores:
1 s for the MLP, 30 s for the ResNet-18.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from itertools import pairwise

import torch
from torch import Tensor, nn

import supple

NETWORKS = {"mlp": 1.0, "resnet18": 30.0}


def built(network: str) -> tuple[nn.Module, Tensor]:
    """The network and 256 (MLP) or 64 (ResNet-18) probe inputs."""
    if network == "resnet18":
        return supple.models.resnet18(), torch.randn(64, 3, 32, 32)
    sizes = (128, 256, 240, 10)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]), torch.randn(256, 128)


def measure(network: str) -> None:
    torch.manual_seed(0)
    model, inputs = built(network)
    healthy, _ = built(network)
    batch = (inputs, torch.randint(10, (len(inputs),)))
    size = sum(p.numel() for p in model.parameters())
    print(f"{network}: {size} parameters, {len(inputs)} probe samples, {torch.get_num_threads()} thread(s)")
    for turn in ("first", "second"):
        wall, cpu = time.perf_counter(), time.process_time()
        supple.diagnose(model, batch, nn.functional.cross_entropy, reference=healthy, budget=0)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        kept = "kept" if wall <= NETWORKS[network] else "MISSED"
        print(f"  {turn:6} call {wall:7.2f} s, {cpu:7.2f} CPU-s; promise {NETWORKS[network]:g} s: {kept}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=list(NETWORKS), help="only this one (default: both)")
    chosen = parser.parse_args().network
    if chosen:
        measure(chosen)
        return
    for network in NETWORKS:
        subprocess.run([sys.executable, __file__, "--network", network], check=True)


if __name__ == "__main__":
    main()
