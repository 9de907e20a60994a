"""The networks of the protocols, initialised by key."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from supple.streams import generator


def he_uniform_(weight: Tensor) -> None:
    """Uniform in ±√(6 / fan_in), in place (He et al. 2015, for ReLU)."""
    bound = math.sqrt(6.0 / weight[0].numel())
    with torch.no_grad():
        weight.uniform_(-bound, bound)


def _activation(name: str) -> tuple[nn.Module, int]:
    """The module, and how many outputs it has for each input unit."""
    if name == "relu":
        return nn.ReLU(), 1
    from supple import nn as plastic

    return {"crelu": plastic.CReLU, "fourier": plastic.DeepFourier}[name](), 2


def mlp(
    inputs: int, hidden: tuple[int, ...], outputs: int, *, activation: str = "relu", norm: bool = False
) -> nn.Sequential:
    """Linear layers ``fc1``, ``fc2``, … with norm and activation, then ``head``; none hidden: a linear model.

    ``hidden`` counts what the next layer sees, so an activation with two outputs a unit gets half the units.
    Weights He-uniform, biases zero.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    width = inputs
    for i, seen in enumerate(hidden, 1):
        act, factor = _activation(activation)
        parts[f"fc{i}"] = nn.Linear(width, seen // factor)
        if norm:
            parts[f"norm{i}"] = nn.LayerNorm(seen // factor)
        parts[f"act{i}"] = act
        width = seen
    parts["head"] = nn.Linear(width, outputs)
    for module in parts.values():
        if isinstance(module, nn.Linear):
            he_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return nn.Sequential(parts)


def keyed(build: Callable[[], nn.Module], seed: int, *key: str | int) -> nn.Module:
    """Build a network from a key: the global random state neither matters nor moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, *key).initial_seed())
        return build()
