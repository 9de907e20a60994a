"""What changes from task to task. Each change maps data to data, keyed by (seed, task), and they compose:
a stream applies its changes one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as nnf

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


@dataclass(frozen=True)
class DrawClasses:
    """A few classes in every task, drawn anew, and their numbers from 0: a sequence of classes.

    The change of Continual ImageNet (Dohare et al. 2024: two of 1,000 classes a task), where the head stays or is
    made anew by the protocol.

    >>> y = torch.arange(10).repeat(3)
    >>> _, y = DrawClasses(2)(torch.zeros(30, 1), y, seed=0, task=0)
    >>> y.tolist()
    [0, 1, 0, 1, 0, 1]
    """

    classes: int = 2

    def drawn(self, targets: Tensor, *, seed: int, task: int) -> Tensor:
        """The classes of a task, in the order of their new numbers."""
        known = targets.unique()
        order = torch.randperm(len(known), generator=generator(seed, "classes", task))
        return known[order[: self.classes]].sort().values

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        match = targets[:, None] == self.drawn(targets, seed=seed, task=task)
        rows = match.any(1)
        return inputs[rows], match[rows].int().argmax(1)


@dataclass(frozen=True)
class ChangeDomain:
    """Images (N, C, H, W) as another domain in every task: turned or mirrored, and of another look.

    One of the eight symmetries of the square (where H = W; else of the four that keep the shape), and one of four
    looks: as it is, inverted, blurred (3×3 mean), edges (difference from that mean, at twice the contrast). 32
    domains in all, drawn by (seed, task).

    >>> x, _ = ChangeDomain()(torch.rand(5, 1, 8, 8), torch.zeros(5), seed=0, task=3)
    >>> x.shape
    torch.Size([5, 1, 8, 8])
    """

    def drawn(self, *, seed: int, task: int) -> tuple[int, int]:
        """Number of the symmetry (0 to 7) and of the look (0 to 3)."""
        draw = generator(seed, "domain", task)
        return int(torch.randint(8, (), generator=draw)), int(torch.randint(4, (), generator=draw))

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        symmetry, look = self.drawn(seed=seed, task=task)
        square = inputs.shape[-1] == inputs.shape[-2]
        turned = inputs.rot90(symmetry % 4 if square else 2 * (symmetry % 2), (-2, -1))
        turned = turned.flip(-1) if symmetry >= 4 else turned
        if look == 1:
            return -turned, targets
        if look >= 2:
            blurred = nnf.avg_pool2d(turned, 3, stride=1, padding=1, count_include_pad=False)
            return (blurred if look == 2 else 2 * (turned - blurred)), targets
        return turned.contiguous(), targets
