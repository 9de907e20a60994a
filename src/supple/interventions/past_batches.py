"""The last few training batches, kept beside the model: inputs that are not in the current batch."""

from __future__ import annotations

import copy
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from supple import fresh
from supple.errors import InputError


@dataclass(frozen=True)
class Layout:
    """How the arguments of a call are put together again from their tensors."""

    tree: TreeSpec
    constants: dict[int, Any]  # the leaves that are no tensors

    def build(self, tensors: dict[int, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        leaves = [tensors[i] if i in tensors else self.constants[i] for i in range(self.tree.num_leaves)]
        return tree_unflatten(leaves, self.tree)


@dataclass(frozen=True)
class Batch:
    """The tensors of one call by position, detached, and the step in which it was seen."""

    step: int
    tensors: dict[int, Tensor]
    layout: Layout | None = None  # of its own call, which later ones need not share; not part of a state

    @property
    def samples(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def part(self, fraction: float, generator: torch.Generator) -> Batch:
        """A random ``fraction`` of the samples (at least one), from axis 0 of every tensor of that length."""
        total = self.samples
        count = max(1, math.ceil(fraction * total))
        if count == total:
            return self
        rows = torch.randperm(total, generator=generator)[:count]
        return Batch(
            self.step,
            {
                i: t.index_select(0, rows.to(t.device)) if t.dim() and t.shape[0] == total else t
                for i, t in self.tensors.items()
            },
            self.layout,
        )

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "tensors": {str(i): t.clone() for i, t in self.tensors.items()}}

    @staticmethod
    def restore(state: Mapping[str, Any], device: torch.device) -> Batch:
        tensors = {int(i): t.detach().clone().to(device) for i, t in state["tensors"].items()}
        return Batch(int(state["step"]), tensors)


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any], step: int) -> tuple[Batch, Layout]:
    """Copy the tensors out of a call; a call without a tensor that has a sample axis is refused."""
    leaves, tree = tree_flatten((args, kwargs))
    tensors = {i: x.detach().clone() for i, x in enumerate(leaves) if isinstance(x, Tensor)}
    if not tensors or next(iter(tensors.values())).dim() == 0:
        raise InputError(
            "the model is not called with a tensor whose first axis counts samples",
            found=[type(x).__name__ for x in leaves],
        )
    constants = {i: x for i, x in enumerate(leaves) if i not in tensors}
    layout = Layout(tree, constants)
    return Batch(step, tensors, layout), layout


class PastBatches:
    """At most ``memory`` batches: the last ones, or (``reservoir``) an even sample of all that were ever seen.

    The reservoir is algorithm R (Vitter 1985) over batches: each of n batches is kept with chance memory / n.
    """

    def __init__(self, memory: int, reservoir: bool = False, seed: int = 0) -> None:
        self.batches: deque[Batch] = deque(maxlen=memory)
        self.memory, self.reservoir, self.seed = memory, reservoir, seed
        self.layout: Layout | None = None
        self.seen = 0

    def add(self, args: tuple[Any, ...], kwargs: dict[str, Any], step: int) -> None:
        self.seen += 1
        place = self.memory
        if self.reservoir and self.seen > self.memory:
            source = fresh.generator(self.seed, self.seen, "reservoir", "cpu")
            place = int(torch.randint(self.seen, (1,), generator=source))
            if place >= self.memory and self.layout is not None:
                return  # not kept, so not copied
        batch, self.layout = flatten(args, kwargs, step)
        if not self.reservoir or self.seen <= self.memory:
            self.batches.append(batch)
        elif place < self.memory:
            self.batches[place] = batch

    def draw(self, before: int, fraction: float, generator: torch.Generator) -> Batch | None:
        """A random part of a random batch that was seen before step ``before``, or None."""
        older = [b for b in self.batches if b.step < before]
        if not older:
            return None
        index = int(torch.randint(len(older), (1,), generator=generator))
        return older[index].part(fraction, generator)


class Capture:
    """A forward pre-hook that hands the arguments of training passes on.

    It knows its module by a weak reference and a copy of it is inert, so that ``deepcopy(model)``, an
    averaged model or a pickled one never writes into the original's memory.
    """

    def __init__(self, module: nn.Module | None, receive: Callable[..., None] | None) -> None:
        self.module = weakref.ref(module) if module is not None else None
        self.receive = receive

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # eval and no-grad passes are somebody's look at the network, not its training
        if self.receive is None or self.module is None or self.module() is not module:
            return
        if module.training and torch.is_grad_enabled():
            self.receive(args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Capture:
        return Capture(None, None)

    def __copy__(self) -> Capture:
        return copy.deepcopy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Capture, (None, None)


@contextmanager
def quiet_pass(network: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Eval behaviour (no dropout, no buffer moves) and a fixed random state; flags and state come back.

    The flags are set one by one: ``train()`` and ``eval()`` may be overridden, and a module that was in
    eval mode before (a frozen norm) stays there. They are set past ``Module.__setattr__``, and single
    generators are seeded instead of all, because this runs twice per training step.
    """
    training = [m for m in network.modules() if m.training]
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [g.get_state() for g in generators]
    for generator in generators:
        generator.manual_seed(seed)
    for module in training:
        vars(module)["training"] = False
    try:
        yield
    finally:
        for module in training:
            vars(module)["training"] = True
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
