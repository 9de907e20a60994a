"""Which networks: families, shapes of the two halves, illnesses with a severity dial, healthy controls."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from supple.models import MLP, ConvNet, ResNet

TRAIN, EVALUATION = "train", "evaluation"
IMAGE = (1, 8, 8)


class Images(nn.Module):
    """A network of images that takes the rows of the digits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.unflatten(1, IMAGE))


def _mlp(widths: tuple[int, ...], activation: str = "relu", **options: Any) -> Callable[[], nn.Module]:
    return lambda: MLP((64, *widths, 10), activation, **options)


def _conv(widths: tuple[int, int], hidden: int) -> Callable[[], nn.Module]:
    return lambda: Images(ConvNet(1, 8, 10, widths=widths, kernels=(3, 1), hidden=(hidden,)))


def _resnet(widths: tuple[int, int], norm: bool) -> Callable[[], nn.Module]:
    return lambda: Images(ResNet(widths, (1, 1), channels=1, norm=norm))


#: family -> factory of each half; the halves share no shape
FAMILIES: Mapping[str, Mapping[str, Callable[[], nn.Module]]] = {
    "mlp": {TRAIN: _mlp((64, 64)), EVALUATION: _mlp((96, 48, 48))},
    "mlp-leaky": {TRAIN: _mlp((64, 64), "leaky_relu"), EVALUATION: _mlp((80, 80), "leaky_relu")},
    "mlp-layernorm": {TRAIN: _mlp((64, 64), norm=True), EVALUATION: _mlp((80, 56), norm=True)},
    "mlp-tanh": {TRAIN: _mlp((64, 64), "tanh"), EVALUATION: _mlp((72, 72, 72), "tanh")},
    "convnet": {TRAIN: _conv((16, 24), 48), EVALUATION: _conv((12, 32), 64)},
    "resnet": {TRAIN: _resnet((12, 24), False), EVALUATION: _resnet((16, 32), False)},
    "resnet-norm": {TRAIN: _resnet((12, 24), True), EVALUATION: _resnet((16, 32), True)},
}
#: healthy by design, MLPs only: wide, a bottleneck, another initialiser
DESIGNS: Mapping[str, Mapping[str, Callable[[], nn.Module]]] = {
    "wide": {TRAIN: _mlp((256, 256)), EVALUATION: _mlp((320, 192))},
    "bottleneck": {TRAIN: _mlp((64, 12, 64)), EVALUATION: _mlp((96, 16, 48))},
    "default-init": {TRAIN: _mlp((64, 64), init="default"), EVALUATION: _mlp((96, 48), init="default")},
}
#: illness -> severities, harmful ones mostly
DIAL: Mapping[str, tuple[float, ...]] = {
    "dead": (0.5, 0.8), "rank": (0.2, 0.5), "common": (4.0, 10.0), "grown": (4.0, 8.0), "cloned": (0.6, 0.9),
}  # fmt: skip
PAIRS = (("dead", "rank"), ("rank", "common"))
NO_DEAD_ZONE = ("mlp-leaky", "mlp-tanh")


@dataclass(frozen=True)
class Case:
    """One network: ``ills`` are (name, severity); none is a healthy control, ``tasks`` of training before it."""

    half: str
    family: str
    design: str = ""
    ills: tuple[tuple[str, float], ...] = ()
    tasks: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        ills = "+".join(f"{n}={s:g}" for n, s in self.ills) or ("trained" if self.tasks else "fresh")
        return "/".join(p for p in (self.half, self.family, self.design, ills, str(self.seed)) if p)

    @property
    def factory(self) -> Callable[[], nn.Module]:
        return (DESIGNS[self.design] if self.design else FAMILIES[self.family])[self.half]


@dataclass(frozen=True)
class Size:
    """How many seeds of every case, and how the truth is measured."""

    seeds: int
    references: int
    tasks: int
    steps: int
    budget: float


PRESETS: Mapping[str, Size] = {
    "tiny": Size(1, 2, 1, 60, 0.5),
    "small": Size(1, 3, 2, 120, 3.0),
    "paper": Size(8, 20, 5, 300, 30.0),
}


def cases(preset: str, half: str) -> list[Case]:
    """All cases of one half, in an order keyed by their names, so that a part of them is a fair part.

    >>> len({c.name for c in cases("small", "evaluation")}) == len(cases("small", "evaluation"))
    True
    """
    found: list[Case] = []
    for number in range(PRESETS[preset].seeds):
        seed = number if half == TRAIN else 1000 + number
        found += [Case(half, f, tasks=t, seed=seed) for t in (0, 1) for f in FAMILIES]
        found += [Case(half, "mlp", d, seed=seed) for d in DESIGNS]
        for ill, dial in DIAL.items():
            found += [
                Case(half, f, ills=((ill, s),), seed=seed)
                for s in reversed(dial)
                for f in FAMILIES
                if not (ill == "dead" and f in NO_DEAD_ZONE)
            ]
        mild = {name: dial[0] for name, dial in DIAL.items()}
        found += [
            Case(half, f, ills=tuple((i, mild[i]) for i in pair), seed=seed)
            for pair in PAIRS
            for f in FAMILIES
            if not ("dead" in pair and f in NO_DEAD_ZONE)
        ]
    return sorted(found, key=lambda c: zlib.crc32(c.name.encode()))
