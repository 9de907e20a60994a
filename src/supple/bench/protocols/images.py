"""What the protocols on images have in common: a data set by name, its scale, subsets of it, an MLP or a ConvNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from supple.bench.protocols.base import Protocol
from supple.errors import InputError
from supple.streams import AsFloat, Change, Stream, generator
from supple.streams.data import load, mean_and_deviation

NATURE = "Dohare et al., Nature 2024"
LOP = "the configurations of the authors' repository (shibhansh/loss-of-plasticity)"
KUMAR = "Kumar et al. 2023 (arXiv 2308.11958)"
HERE = "chosen here"
SHORT = "; the other presets: chosen here, for time"


def decayed(weight_decay: float) -> dict[str, Any]:
    """Settings of `L2` that are ``weight_decay`` of an optimizer: coef · ‖θ‖² has the gradient 2 · coef · θ.

    >>> decayed(3e-6)
    {'coef': 1.5e-06}
    """
    return {"coef": weight_decay / 2}


def shrunk(weight_decay: float, noise: float) -> dict[str, Any]:
    """Shrink and perturb as Dohare et al. have it: the optimizer's weight decay, and noise N(0, noise²) every step."""
    every = {"name": "ShrinkAndPerturb", "scaling": "nature", "every": 1, "shrink": 1.0, "perturb": noise}
    return {"parts": [{"name": "L2", **decayed(weight_decay)}, every]}


SHAPES: dict[str, tuple[int, int, int]] = {
    "mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "tiny-imagenet-32": (3, 32, 32),
    "tiny-imagenet": (3, 64, 64),
    "imagenet32": (3, 32, 32),
}


@dataclass(frozen=True, kw_only=True)
class ImageProtocol(Protocol):
    """Base: ``data`` names a set of `supple.streams.data.SETS`; ``samples`` of its training images, 0 for all."""

    #: whether what a task is judged on is the data set's test split
    test_split: ClassVar[bool] = True
    data: str
    samples: int
    #: whether channels are standardised; else images are only scaled to [0, 1]
    standardise: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data not in SHAPES:
            raise InputError(
                f"no images of {self.data!r}", where=self.name, do=f"choose one of {', '.join(SHAPES)}"
            )
        if self.inputs != math.prod(SHAPES[self.data]):
            raise InputError(
                f"inputs must be the values of an image of {self.data}",
                found=self.inputs,
                do=f"give inputs={math.prod(SHAPES[self.data])}",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.inputs,) if self.network == "mlp" else SHAPES[self.data]

    def changes(self) -> Sequence[Change]:
        """What changes from task to task, on images of bytes."""
        raise TypeError(f"{type(self).__name__} does not say what changes")

    def finish(self) -> Sequence[Change]:
        """What changes from task to task, on floats."""
        return ()

    def subset(self, inputs: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The training images of a seed, drawn once."""
        if not self.samples:
            return inputs, targets
        if self.samples > len(inputs):
            raise InputError(
                "more samples than there are", found=f"{self.samples} of {len(inputs)}", where=self.name
            )
        rows = torch.randperm(len(inputs), generator=generator(seed, "subset"))[: self.samples]
        return inputs[rows], targets[rows]

    def held_out(self, seed: int) -> tuple[Tensor, Tensor] | None:
        """What the tasks are judged on."""
        return load(self.data, "test") if self.test_split else None

    def scale(self, images: Tensor) -> AsFloat:
        """Bytes to floats, by the statistics of the training images."""
        if not self.standardise:
            return AsFloat(flat=self.network == "mlp")
        mean, deviation = mean_and_deviation(images)
        return AsFloat(tuple(mean.tolist()), tuple(deviation.tolist()), flat=self.network == "mlp")

    def stream(self, seed: int) -> Stream:
        inputs, targets = load(self.data)
        if tuple(inputs.shape[1:]) != SHAPES[self.data]:
            raise InputError(
                f"images of {self.data} must be {SHAPES[self.data]}", found=tuple(inputs.shape[1:])
            )
        scale = self.scale(inputs)
        inputs, targets = self.subset(inputs, targets, seed)
        return Stream(
            inputs,
            targets,
            changes=[*self.changes(), scale, *self.finish()],
            tasks=self.tasks,
            seed=seed,
            held_out=self.held_out(seed),
        )
