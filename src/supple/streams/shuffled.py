"""The i.i.d. control: the same samples as a stream, shuffled over all of its tasks."""

from __future__ import annotations

import itertools
from functools import cached_property

import torch
from torch import Tensor

from supple.streams.keys import generator
from supple.streams.stream import Stream, Task

#: bytes of inputs that are gathered at once; each gathering walks through all tasks of the source
BLOCK = 1 << 28


class Shuffled(Stream):
    """As many tasks of as many samples as ``source`` has, each sample of it exactly once, in one keyed shuffle.

    What is hard in a sequence and not in this is hard because it is a sequence. Tasks are judged on their own samples.

    >>> from supple.streams import PermutedPixels
    >>> mixed = Shuffled(PermutedPixels(tasks=3, seed=0))
    >>> [len(task) for task in mixed]
    [1797, 1797, 1797]
    """

    def __init__(self, source: Stream) -> None:
        super().__init__(source.inputs, source.targets, changes=(), tasks=source.tasks, seed=source.seed)
        self.source = source
        self._block: dict[int, Task] = {}

    @cached_property
    def _plan(self) -> tuple[list[int], Tensor, Tensor]:
        """Lengths of the tasks; of each place in the shuffle, the source task and the row in it."""
        lengths = [len(self.source.task(t)) for t in range(self.tasks)]
        owner = torch.arange(self.tasks).repeat_interleave(torch.tensor(lengths))
        row = torch.cat([torch.arange(n) for n in lengths])
        order = torch.randperm(len(row), generator=generator(self.seed, "shuffled"))
        return lengths, owner[order], row[order]

    def task(self, index: int) -> Task:
        if not 0 <= index < self.tasks:
            raise IndexError(f"task {index} of a stream of {self.tasks} tasks")
        if index not in self._block:
            self._block = self._gather(index)
        return self._block[index]

    def _gather(self, first: int) -> dict[int, Task]:
        """The task ``first`` and as many after it as fit into a block."""
        lengths, owner, row = self._plan
        sample = self.source.task(0)
        each = sample.inputs[0].numel() * sample.inputs.element_size()
        sizes = list(itertools.accumulate(lengths[first:]))
        count = max(1, sum(size * each <= BLOCK for size in sizes))
        start = sum(lengths[:first])
        places = slice(start, start + sizes[count - 1])
        owner, row = owner[places], row[places]
        inputs = sample.inputs.new_empty((len(row), *sample.inputs.shape[1:]))
        targets = sample.targets.new_empty((len(row), *sample.targets.shape[1:]))
        for t in range(self.tasks):
            here = owner == t
            if here.any():
                task = self.source.task(t)
                inputs[here], targets[here] = task.inputs[row[here]], task.targets[row[here]]
        parts = zip(
            inputs.split(lengths[first : first + count]),
            targets.split(lengths[first : first + count]),
            strict=True,
        )
        return {
            first + i: Task(first + i, f"task-{first + i}", x, y, self.seed) for i, (x, y) in enumerate(parts)
        }
