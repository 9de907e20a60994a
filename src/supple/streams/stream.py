"""A stream: base data, changes, and tasks by index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from supple.errors import InputError
from supple.streams.changes import Change
from supple.streams.keys import generator

#: batches gathered at once; gathering a chunk and slicing it is several times cheaper than one gather a step
CHUNK = 64


@dataclass(frozen=True)
class Task:
    """A stretch of stationary data, ``inputs`` (N, ...) and ``targets`` (N,), and its place in the stream."""

    index: int
    name: str
    inputs: Tensor
    targets: Tensor
    seed: int
    #: data of the same task that is judged on and never learned
    held_out: tuple[Tensor, Tensor] | None = None

    @property
    def judged(self) -> tuple[Tensor, Tensor]:
        """What the network is judged on after the task: the held-out data where there is some, else the task's own."""
        return (self.inputs, self.targets) if self.held_out is None else self.held_out

    @property
    def judged_samples(self) -> int:
        """How many samples it is judged on."""
        return len(self.judged[1])

    def __len__(self) -> int:
        return len(self.targets)

    def steps(self, size: int, epochs: int = 1) -> int:
        """How many batches `batches` yields."""
        return (len(self) // size) * epochs

    def batches(self, size: int, epochs: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Full batches in an order keyed by (seed, task, epoch); a last partial batch is left out.

        Raises:
            InputError: a batch larger than the task.
        """
        if not 1 <= size <= len(self):
            raise InputError(
                "the batch size must be between 1 and the number of samples",
                found=f"batch {size}, {len(self)} samples",
                where=self.name,
            )
        return self._batches(size, epochs)

    def _batches(self, size: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in range(epochs):
            for rows in self.order(size, epoch).split(size * CHUNK):
                yield from zip(self.inputs[rows].split(size), self.targets[rows].split(size), strict=True)

    def order(self, size: int, epoch: int) -> Tensor:
        """Rows of the data in the order in which the full batches of an epoch take them."""
        order = torch.randperm(len(self), generator=generator(self.seed, "order", self.index, epoch))
        return order[: len(self) // size * size]

    def probe(self, size: int) -> tuple[Tensor, Tensor]:
        """A keyed sample of the task's data, the same rows in every task of a stream, to measure on."""
        rows = torch.randperm(len(self), generator=generator(self.seed, "probe"))[:size]
        return self.inputs[rows], self.targets[rows]


class Stream(Sequence[Task]):
    """A sequence of tasks over base data, made by changes that compose. Boundaries are told.

    Args:
        inputs: (N, ...) base inputs. targets: (N,) base targets.
        changes: applied in this order, each keyed by (seed, task).
        tasks: how many tasks the stream has; any index below it is computed without the ones before.
        seed: two streams of one seed are identical, whatever method learns them.
        held_out: (inputs, targets) that get the same changes, to judge on.

    Raises:
        InputError: no data, lengths that differ, fewer than one task.

    >>> from supple.streams import PermutePixels
    >>> s = Stream(torch.rand(8, 4), torch.arange(8) % 2, changes=[PermutePixels()], tasks=3, seed=1)
    >>> [task.name for task in s]
    ['task-0', 'task-1', 'task-2']
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        changes: Sequence[Change],
        tasks: int,
        seed: int,
        held_out: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        if len(inputs) == 0 or len(inputs) != len(targets):
            raise InputError(
                "a stream needs as many targets as inputs, and at least one",
                found=f"{len(inputs)} inputs, {len(targets)} targets",
            )
        if tasks < 1:
            raise InputError("a stream needs at least one task", found=tasks)
        self.inputs, self.targets, self.held_out = inputs, targets, held_out
        self.changes, self.tasks, self.seed = tuple(changes), tasks, seed

    def __len__(self) -> int:
        return self.tasks

    def task(self, index: int) -> Task:
        """Task ``index``, computed from its key."""
        if not 0 <= index < self.tasks:
            raise IndexError(f"task {index} of a stream of {self.tasks} tasks")
        inputs, targets = self._changed(index, self.inputs, self.targets)
        held_out = None if self.held_out is None else self._changed(index, *self.held_out)
        return Task(index, f"task-{index}", inputs, targets, self.seed, held_out)

    def judged(self, index: int) -> Task:
        """Task ``index`` with nothing but what it is judged on, which costs less where that is held-out data."""
        if self.held_out is None or not 0 <= index < self.tasks:
            return self.task(index)
        inputs, targets = self._changed(index, *self.held_out)
        return Task(index, f"task-{index}", inputs, targets, self.seed)

    def _changed(self, index: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        for change in self.changes:
            inputs, targets = change(inputs, targets, seed=self.seed, task=index)
        return inputs, targets

    def __getitem__(self, index: int) -> Task:  # type: ignore[override]
        return self.task(index + self.tasks if index < 0 else index)
