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
    """A few classes in every task, drawn anew, numbered from 0 in the order of the draw: a sequence of classes.

    The change of Continual ImageNet (Dohare et al. 2024: two of 1,000 classes a task, the first drawn is 0), where the
    head stays or is made anew by the protocol. ``sort``: numbered by class instead, so that a class with a low number
    mostly has the same label whenever it comes.

    >>> y = torch.arange(10).repeat(3)
    >>> _, y = DrawClasses(2)(torch.zeros(30, 1), y, seed=0, task=0)
    >>> y.tolist()
    [1, 0, 1, 0, 1, 0]
    """

    classes: int = 2
    sort: bool = False

    def drawn(self, targets: Tensor, *, seed: int, task: int) -> Tensor:
        """The classes of a task, in the order of their new numbers."""
        known = targets.unique()
        order = torch.randperm(len(known), generator=generator(seed, "classes", task))
        found = known[order[: self.classes]]
        return found.sort().values if self.sort else found

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


@dataclass(frozen=True)
class AsFloat:
    """Bytes as floats, (x / 255 - mean) / deviation, channel by channel; ``flat``: as rows. The last of the changes.

    >>> x, _ = AsFloat(flat=True)(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(1), seed=0, task=0)
    >>> x
    tensor([[1., 1., 1., 1.]])
    """

    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    flat: bool = False

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        scale = [torch.tensor(v)[:, None, None] for v in (self.mean, self.deviation)]
        # one copy: whole data sets come through here in every task
        floats = inputs.to(torch.float32, copy=True)
        floats.div_(255).sub_(scale[0]).div_(scale[1])
        return floats.flatten(1) if self.flat else floats, targets


@dataclass(frozen=True)
class PermuteLabels:
    """The classes change their numbers by a new permutation in every task (label flipping).

    >>> _, y = PermuteLabels(3)(torch.zeros(3, 1), torch.arange(3), seed=0, task=0)
    >>> sorted(y.tolist())
    [0, 1, 2]
    """

    classes: int

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        return inputs, torch.randperm(self.classes, generator=generator(seed, "relabel", task))[targets]


@dataclass(frozen=True)
class LabelNoise:
    """A share of the labels is drawn anew, uniformly over all classes, other samples in every task.

    >>> _, y = LabelNoise(10, share=0.0)(torch.zeros(3, 1), torch.arange(3), seed=0, task=0)
    >>> y.tolist()
    [0, 1, 2]
    """

    classes: int
    share: float = 0.5

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        draw = generator(seed, "noise", task)
        hit = torch.rand(len(targets), generator=draw) < self.share
        return inputs, torch.where(hit, torch.randint(self.classes, targets.shape, generator=draw), targets)


@dataclass(frozen=True)
class GrowClasses:
    """``step`` more classes in every task, in a keyed order and numbered in it; the old data is kept.

    >>> _, y = GrowClasses(2)(torch.zeros(6, 1), torch.arange(6), seed=0, task=1)
    >>> sorted(y.tolist())
    [0, 1, 2, 3]
    """

    step: int

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        known = targets.unique()
        order = known[torch.randperm(len(known), generator=generator(seed, "class order"))]
        match = targets[:, None] == order[: (task + 1) * self.step]
        rows = match.any(1)
        return inputs[rows], match[rows].int().argmax(1)


@dataclass(frozen=True)
class ManyThenOne:
    """Classes not seen before: ``many`` of them in even tasks, one in odd tasks (its rows repeated ``many`` times).

    The classes keep their numbers. The change of 5+1 CIFAR (Kumar et al. 2023).

    >>> _, y = ManyThenOne(2)(torch.zeros(6, 1), torch.arange(6), seed=0, task=1)
    >>> len(y), len(y.unique())
    (2, 1)
    """

    many: int = 5

    def drawn(self, targets: Tensor, *, seed: int, task: int) -> Tensor:
        """The classes of a task; after the last class the order begins again."""
        known = targets.unique()
        order = known[torch.randperm(len(known), generator=generator(seed, "class order"))]
        first = task // 2 * (self.many + 1) + (self.many if task % 2 else 0)
        return order[torch.arange(first, first + (1 if task % 2 else self.many)) % len(known)]

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        rows = torch.isin(targets, self.drawn(targets, seed=seed, task=task)).nonzero().squeeze(1)
        rows = rows.repeat(self.many) if task % 2 else rows
        return inputs[rows], targets[rows]


@dataclass(frozen=True)
class Drift:
    """Float inputs that move by ``speed`` a task along one keyed direction: x + speed · task · d, d of entries ±1.

    >>> x, _ = Drift(0.5)(torch.zeros(1, 3), torch.zeros(1), seed=0, task=2)
    >>> x.abs().tolist()
    [[1.0, 1.0, 1.0]]
    """

    speed: float

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        sign = torch.randint(2, inputs.shape[1:], generator=generator(seed, "drift")) * 2 - 1
        return inputs + self.speed * task * sign, targets


@dataclass(frozen=True)
class Held:
    """Another change that happens abruptly, every ``over`` tasks, and not in between."""

    change: Change
    over: int

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        return self.change(inputs, targets, seed=seed, task=task // self.over)


@dataclass(frozen=True)
class Gradual:
    """Another change that happens gradually: from concept k to k + 1 in ``over`` equal steps, a = j / over.

    Float inputs are interpolated, (1 - a) x_k + a x_(k+1); a sample has the later label with probability a, and once it
    has it, keeps it. With ``over=1`` it is the change itself. The change must keep rows and their order.

    >>> step = Gradual(PermuteLabels(5), over=4)
    >>> y = torch.arange(5)
    >>> bool((step(y, y, seed=0, task=4)[1] == PermuteLabels(5)(y, y, seed=0, task=1)[1]).all())
    True
    """

    change: Change
    over: int

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int, task: int) -> tuple[Tensor, Tensor]:
        concept, part = divmod(task, self.over)
        x, y = self.change(inputs, targets, seed=seed, task=concept)
        if part == 0:
            return x, y
        later_x, later_y = self.change(inputs, targets, seed=seed, task=concept + 1)
        share = part / self.over
        if x is not later_x:
            x = torch.lerp(x.float(), later_x.float(), share)
        late = torch.rand(len(y), generator=generator(seed, "late", concept)) < share
        return x, torch.where(late, later_y, y)
