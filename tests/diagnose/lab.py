"""The small pathology lab: networks whose illness is known, by construction or by wear, and healthy ones.

Constructions and recipes of the feasibility study: dead (bias -50 on a share of the units), rank (sigma_i
proportional to (1-s)^i, Frobenius norm kept), common mode (one bias on all units of the first layer), and
the D2 stream (a new permutation of the pixels per task, one online epoch of 16-sample batches, Adam 3e-3).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supple.diagnose.probe_tasks import learn
from supple.streams import digits

Factory = Callable[[], nn.Module]
WIDTHS = (64, 64, 64, 10)


def data() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return torch.as_tensor(x), torch.as_tensor(y)


def he_(net: nn.Module, seed: int) -> nn.Module:
    """He-uniform weights, zero biases."""
    g = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            with torch.no_grad():
                draw = torch.rand(module.weight.shape, generator=g) * 2 - 1
                module.weight.copy_(draw * math.sqrt(6 / fan_in))
                module.bias.zero_()
    return net


def mlp(
    widths: Sequence[int] = WIDTHS,
    activation: Callable[[], nn.Module] = nn.ReLU,
    norm: bool = False,
) -> nn.Sequential:
    """A plain MLP with PyTorch's initialisation."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(a, b))
        if i < len(widths) - 2:
            layers += [*([nn.LayerNorm(b)] if norm else []), activation()]
    return nn.Sequential(*layers)


def he_factory(widths: Sequence[int] = WIDTHS, activation: Callable[[], nn.Module] = nn.ReLU) -> Factory:
    """A factory of He-uniform MLPs, seeded by the global generator as a user's would be."""
    return lambda: he_(mlp(widths, activation), int(torch.randint(1 << 30, ())))


def convnet() -> nn.Sequential:
    """8 x 8 digits, two convolutions with pooling, one hidden layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def built(factory: Factory, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return factory()


def hidden_linears(net: nn.Module) -> list[nn.Linear]:
    return [m for m in net.modules() if isinstance(m, nn.Linear)][:-1]


def kill_(net: nn.Module, share: float) -> nn.Module:
    for layer in hidden_linears(net):
        with torch.no_grad():
            layer.bias[: int(layer.out_features * share)] = -50.0
    return net


def collapse_(net: nn.Module, severity: float) -> nn.Module:
    for layer in hidden_linears(net)[1:]:
        with torch.no_grad():
            u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
            decayed = (1 - severity) ** torch.arange(len(s), dtype=s.dtype)
            layer.weight.copy_(u @ torch.diag(decayed * s.norm() / decayed.norm()) @ v)
    return net


def common_mode_(net: nn.Module, bias: float) -> nn.Module:
    with torch.no_grad():
        hidden_linears(net)[0].bias += bias
    return net


def d2(
    net: nn.Module,
    tasks: int,
    seed: int,
    *,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    pull: float = 0.0,
) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Wear a network on pixel permutations; returns it with the data of every task. ``pull`` is L2-Init."""
    x, y = data()
    params = list(net.parameters())
    opt = optimizer(params) if optimizer else torch.optim.Adam(params, lr=3e-3, fused=True)
    start = [p.detach().clone() for p in params]
    g = torch.Generator().manual_seed(seed)
    seen = []
    for _ in range(tasks):
        xt = x[:, torch.randperm(64, generator=g)]
        order = torch.randperm(len(x), generator=g)
        for i in range(0, len(x) - 15, 16):
            rows = order[i : i + 16]
            loss = F.cross_entropy(net(xt[rows]), y[rows])
            if pull:
                loss = loss + pull * sum(((p - q) ** 2).sum() for p, q in zip(params, start, strict=True))
            opt.zero_grad()
            loss.backward()
            opt.step()
        seen.append((xt, y))
    return net, seen


def memorise(net: nn.Module, tasks: int, seed: int, samples: int = 300, epochs: int = 20) -> nn.Module:
    """Wear a network on random labels of fixed digits (setting A: SGD 0.1)."""
    x = data()[0][:samples]
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    g = torch.Generator().manual_seed(seed)
    for _ in range(tasks):
        y = torch.randint(10, (samples,), generator=g)
        for _ in range(epochs):
            order = torch.randperm(samples, generator=g)
            for i in range(0, samples - 15, 16):
                rows = order[i : i + 16]
                opt.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                opt.step()
    return net


def probe(samples: int = 256) -> tuple[Tensor, Tensor]:
    x, y = data()
    return x[:samples], y[:samples]


def copy_of(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net)


WORN = Path(__file__).parent / "data" / "worn_d2.npz"


def worn_d2(seed: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A 64-64-64-10 ReLU network after 150 tasks of D2, with a probe of its last task.

    Training takes half a minute per seed, so that two worn networks are kept in ``data/worn_d2.npz``;
    ``python -m tests.diagnose.lab`` makes that file anew.
    """
    stored = np.load(WORN)
    net = mlp()
    net.load_state_dict({k: torch.from_numpy(stored[f"{seed}/{k}"]) for k in net.state_dict()})
    x, y = data()
    return net, (x[:256, torch.from_numpy(stored[f"{seed}/pixels"])], y[:256])


def store_worn(seeds: Sequence[int] = (0, 1)) -> None:
    """Train the worn networks and write them to `WORN`."""
    arrays: dict[str, np.ndarray] = {}
    x, _ = data()
    for seed in seeds:
        net, seen = d2(built(he_factory(), seed), 150, seed)
        pixels = [int((x == column[:, None]).all(0).nonzero()[0, 0]) for column in seen[-1][0].T]
        arrays[f"{seed}/pixels"] = np.array(pixels)
        arrays |= {f"{seed}/{k}": v.numpy() for k, v in net.state_dict().items()}
    WORN.parent.mkdir(exist_ok=True)
    np.savez_compressed(WORN, **arrays)


if __name__ == "__main__":
    store_worn()


class Clock:
    """A clock that moves only when a training step is made, at a fixed price: budgets without the machine."""

    def __init__(self, price: float) -> None:
        self.now, self.price = 0.0, price

    def monotonic(self) -> float:
        return self.now

    def charge(self, *_: object) -> None:
        self.now += self.price

    @classmethod
    def in_place_of_time(cls, patch: pytest.MonkeyPatch, module: Any, price: float) -> Clock:
        """The clock of ``module``, which calls ``learn``, for the length of a test."""
        clock = cls(price)

        def counted(network: nn.Module, *args: Any, **options: Any) -> list[float]:
            network.register_forward_pre_hook(clock.charge)
            return learn(network, *args, **options)

        patch.setattr(module, "time", clock)
        patch.setattr(module, "learn", counted)
        return clock
