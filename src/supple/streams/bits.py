"""Slowly-changing regression: bits of which one flips now and then, and a fixed threshold network as target."""

from __future__ import annotations

import torch
from torch import Tensor

from supple.streams.keys import generator
from supple.streams.stream import Stream, Task


class BitFlip(Stream):
    """``samples`` examples a task of ``bits`` bits and a constant 1; at each boundary one of the slow bits flips.

    The first ``slow`` bits are the same for the whole task, the others are drawn for each example. The target is a
    network of ``units`` linear threshold units with weights of ±1; unit i is on where its input is at least
    β (bits + 1) - S_i, S_i the number of its negative weights; output weights ±1 (Dohare et al., Nature 2024).

    >>> task = BitFlip(tasks=3, seed=0, samples=50).task(2)
    >>> task.inputs.shape, task.targets.shape
    (torch.Size([50, 21]), torch.Size([50, 1]))
    """

    def __init__(
        self,
        *,
        tasks: int,
        seed: int,
        samples: int = 10_000,
        bits: int = 20,
        slow: int = 15,
        units: int = 100,
        beta: float = 0.7,
    ) -> None:
        super().__init__(torch.zeros(1, bits + 1), torch.zeros(1), changes=[], tasks=tasks, seed=seed)
        self.samples, self.bits, self.slow = samples, bits, slow
        draw = generator(seed, "target")
        self.weights = torch.randint(2, (units, bits + 1), generator=draw).float() * 2 - 1
        self.readout = torch.randint(2, (units, 1), generator=draw).float() * 2 - 1
        self.thresholds = beta * (bits + 1) - (self.weights < 0).sum(1)

    def slow_bits(self, index: int) -> Tensor:
        """The slow bits of a task: the first draw, with the flips of all boundaries until then."""
        bits = torch.randint(2, (self.slow,), generator=generator(self.seed, "slow bits"))
        for boundary in range(1, index + 1):
            place = torch.randint(self.slow, (), generator=generator(self.seed, "flip", boundary))
            bits[place] = 1 - bits[place]
        return bits.float()

    def task(self, index: int) -> Task:
        if not 0 <= index < self.tasks:
            raise IndexError(f"task {index} of a stream of {self.tasks} tasks")
        fast = torch.randint(
            2, (self.samples, self.bits - self.slow), generator=generator(self.seed, "bits", index)
        )
        slow = self.slow_bits(index).expand(self.samples, -1)
        inputs = torch.cat([slow, fast.float(), torch.ones(self.samples, 1)], 1)
        targets = (inputs @ self.weights.T >= self.thresholds).float() @ self.readout
        return Task(index, f"task-{index}", inputs, targets, self.seed)
