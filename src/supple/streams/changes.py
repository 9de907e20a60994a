"""What changes from task to task. Each change maps data to data, keyed by (seed, task), and they compose:
a stream applies its changes one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from supple.streams.keys import generator


class Change(Protocol):
    """A non-stationarity: the data of task ``task`` from the base data. Must not write in place."""

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class PermutePixels:
    """A new permutation of the input features in every task, the first one included.

    Inputs ``(N, D)`` -> ``(N, D)``; inputs with more axes are permuted over all axes but the first.
    Used by online permuted MNIST (Goodfellow et al. 2013; Dohare et al. 2024).

    >>> x = torch.arange(4.0).repeat(2, 1)
    >>> y, _ = PermutePixels()(x, torch.zeros(2), seed=0, task=0)
    >>> sorted(y[0].tolist())
    [0.0, 1.0, 2.0, 3.0]
    """

    def order(self, features: int, *, seed: int, task: int) -> Tensor:
        """The permutation itself: feature ``j`` of the task is feature ``order[j]`` of the data."""
        return torch.randperm(features, generator=generator(seed, "pixels", task))

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        flat = inputs.flatten(1)
        return flat[:, self.order(flat.shape[1], seed=seed, task=task)].view_as(inputs), targets


@dataclass(frozen=True)
class DrawLabels:
    """New uniformly random labels for every sample in every task: pure memorisation, no transfer.

    The random-label problem of Lyle et al. 2023 and Kumar et al. 2023.

    >>> _, y = DrawLabels(classes=10)(torch.zeros(500, 1), torch.zeros(500), seed=0, task=0)
    >>> sorted(set(y.tolist())) == list(range(10))
    True
    """

    classes: int

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        draw = generator(seed, "labels", task)
        return inputs, torch.randint(self.classes, (len(inputs),), generator=draw)
