"""The named task sequences: what is fixed, what changes, how many tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from supple.errors import InputError
from supple.streams.changes import DrawLabels, PermutePixels
from supple.streams.digits import digits
from supple.streams.keys import generator
from supple.streams.stream import Stream


class PermutedPixels(Stream):
    """The same labelled data in every task, seen through a new pixel permutation (digits by default).

    Args:
        tasks: number of tasks. seed: key of permutations and orders.
        data: ``(inputs (N, ...), targets (N,))`` instead of the digits.

    >>> task = PermutedPixels(tasks=150, seed=0).task(149)
    >>> len(task), task.steps(16)
    (1797, 112)
    """

    def __init__(self, *, tasks: int, seed: int, data: tuple[Tensor, Tensor] | None = None) -> None:
        inputs, targets = digits() if data is None else data
        super().__init__(inputs, targets, changes=[PermutePixels()], tasks=tasks, seed=seed)


class RandomLabels(Stream):
    """A fixed subset of the data, new random labels in every task (digits by default).

    Args:
        tasks: number of tasks. seed: key of subset, labels and orders.
        samples: size of the subset, drawn once per seed. classes: how many labels to draw from.
        data: ``(inputs (N, ...), targets (N,))`` instead of the digits; the targets are not used.

    >>> task = RandomLabels(tasks=60, seed=0).task(0)
    >>> len(task), task.steps(16, epochs=20)
    (300, 360)
    """

    def __init__(
        self,
        *,
        tasks: int,
        seed: int,
        samples: int = 300,
        classes: int = 10,
        data: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        inputs, targets = digits() if data is None else data
        if not 1 <= samples <= len(inputs):
            raise InputError(
                "the subset must have between 1 and all of the samples",
                found=f"{samples} of {len(inputs)}",
                where="RandomLabels(samples=...)",
            )
        if classes < 2:
            raise InputError("random labels need at least two classes", found=classes)
        rows = torch.randperm(len(inputs), generator=generator(seed, "subset"))[:samples]
        super().__init__(inputs[rows], targets[rows], changes=[DrawLabels(classes)], tasks=tasks, seed=seed)
