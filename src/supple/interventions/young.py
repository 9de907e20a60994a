"""The young slices of a parameter: when they were reset, and how they are moved after a step.

`Ages` holds the births of one parameter's slices; a `Pack` moves all young elements of a parameter group that share a
step count by the same few calls. Why and by how much is said in `supple.interventions.compensation`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.errors import InputError
from supple.fresh import Ageing, Recomputed, Scaled
from supple.fresh.ageing import betas, growth
from supple.interventions.slices import Slice

PRUNE_EVERY = 256
_NEVER = -(1 << 40)  # a birth so long ago that it is old
#: up to this many elements, moving a whole parameter is cheaper than gathering its young slices
_WHOLE = {"cpu": 1 << 15}
_WHOLE_ELSEWHERE = 1 << 20  # where a call costs more than its elements


@dataclass
class Block:
    """Young positions along one axis of a parameter, or (``index`` None) the whole parameter."""

    param: Tensor
    dim: int
    index: Tensor | None
    age: Tensor  # broadcastable to the block; where slices cross, of the younger

    def read(self, tensor: Tensor) -> Tensor:
        return tensor if self.index is None else tensor.index_select(self.dim, self.index)

    def write(self, values: Tensor) -> None:
        if self.index is None:
            self.param.copy_(values)
        else:
            self.param.index_copy_(self.dim, self.index, values.to(self.param.dtype))


class Ages:
    """Births of the reset slices of one parameter, in optimizer steps of that parameter."""

    def __init__(self, param: Tensor, count: int) -> None:
        self.param, self.count = param, count
        # births along dim 0, along dim 1, and of single cells; absent where nothing was reset in that way
        self.births: dict[str, Tensor] = {}

    def mark(self, where: Slice) -> None:
        shape = tuple(self.param.shape)
        key, sizes = f"dim{where.dim}", (shape[where.dim],)
        index: tuple[Tensor, ...] = (where.index.cpu(),)
        if where.cells is not None:
            key, sizes, index = "cells", shape[:2], (*index, where.cells.cpu())
        births = self.births.setdefault(key, torch.full(sizes, _NEVER, dtype=torch.int64))
        births[index] = self.count

    def prune(self, span: int) -> None:
        """Forget the slices that are old."""
        for key, births in list(self.births.items()):
            births[self.count - births >= span] = _NEVER
            if bool((births == _NEVER).all()):
                del self.births[key]

    def _spread(self, key: str) -> Tensor:
        """Births over rows, columns or cells, shaped to broadcast against the parameter."""
        births = self.births[key]
        lead = (1,) * int(key[-1]) if key != "cells" else ()
        trail = (1,) * (self.param.dim() - births.dim() - len(lead))
        return births.view(*lead, *births.shape, *trail)

    def all_births(self) -> Tensor:
        return functools.reduce(torch.maximum, [self._spread(k) for k in self.births])

    def blocks(self) -> list[Block]:
        """Where a large parameter has few young rows and columns, a step needs to look at those alone."""
        if not self.births:
            return []
        births, device, param = self.all_births(), self.param.device, self.param
        whole = [Block(param, 0, None, (self.count - births).to(device))]
        if param.numel() <= _WHOLE.get(device.type, _WHOLE_ELSEWHERE) or "cells" in self.births:
            return whole
        found = []
        for key, along in self.births.items():
            young = torch.nonzero(along != _NEVER).flatten()
            if 2 * len(young) > len(along):
                return whole
            dim = int(key[-1])
            age = self.count - births.index_select(dim, young)
            found.append(Block(param, dim, young.to(device), age.to(device)))
        return found


class Pack:
    """The blocks of a parameter group with one step count: all of them are moved by the same few calls.

    Where a row crosses a column, both blocks hold the same value.
    """

    def __init__(
        self, ageing: Ageing, group: dict[str, Any], ages: list[Ages], curves: dict[Any, Tensor]
    ) -> None:
        self.ageing, self.group, self.key, self.ages = ageing, group, ageing.key(group), ages
        self.count, self.held = ages[0].count, ages[0].param.dtype
        self.dtype = torch.float64 if self.held == torch.float64 else torch.float32
        self.span = ageing.span(group)
        blocks = [b for a in ages for b in a.blocks()]
        # blocks that are moved in place come first
        in_place = [b for b in blocks if b.index is None and self.held == self.dtype]
        self.blocks = in_place + [b for b in blocks if all(b is not x for x in in_place)]
        self.params = [b.param for b in in_place]
        self.copies = [torch.empty_like(p) for p in self.params]
        self.starts: list[Tensor] = []
        self.index = torch.cat([b.age.clamp(max=self.span).flatten() for b in self.blocks])
        # behind the young ages as many old ones as occur before a prune
        key = (self.key, self.dtype, self.index.device)
        if key not in curves:
            numbers = ageing.coefficients(group, np.arange(self.span, dtype=np.float64))
            full = np.pad(numbers, ((0, 0), (0, PRUNE_EVERY + 1)))
            curves[key] = torch.from_numpy(full).to(self.index.device, self.dtype)
        self.curve = curves[key]
        self.factors = self.curve.new_empty(len(self.curve), len(self.index))
        # views are made once: in a small network each costs as much as the arithmetic
        self.first, self.old, self.last = self.curve[0], self.curve[0, self.span :], self.curve[0, -1]
        self.weight, self.one = self.factors[0], self.curve.new_ones(())
        sizes = [b.age.numel() for b in self.blocks]
        rows = [row.split(sizes) for row in self.factors]
        #: by coefficient and block, views of the factors
        self.by_age = [[f.view(b.age.shape) for f, b in zip(row, self.blocks, strict=True)] for row in rows]

    def fits(self, groups: list[dict[str, Any]]) -> bool:
        """Whether the coming step concerns these blocks, under the same settings."""
        return (
            any(g is self.group for g in groups)
            and self.ageing.key(self.group) == self.key
            and all(
                a.param.grad is not None
                and a.param.dtype == self.held
                and a.param.device == self.index.device
                for a in self.ages
            )
        )

    def save(self) -> None:
        """Before the step: the young values."""
        if self.copies:
            torch._foreach_copy_(self.copies, self.params)
        self.starts = self.copies + [
            b.read(b.param).to(self.dtype, copy=True) for b in self.blocks[len(self.copies) :]
        ]
        group = self.group
        decoupled = group.get("decoupled_weight_decay", False) and group["weight_decay"] != 0
        self.decay = 1 - group["lr"] * group["weight_decay"] if decoupled else 1.0
        self.coupled = 0.0 if decoupled else group.get("weight_decay", 0.0)

    def move(self, optimizer: Optimizer) -> None:
        """After the step: put the young elements where a step count of their own would have put them."""
        self.count += 1
        self.index.add_(1)
        ends = [*self.params, *(b.read(b.param).to(self.dtype) for b in self.blocks[len(self.params) :])]
        if not (isinstance(self.decay, float) and self.decay == 1.0):
            torch._foreach_mul_(self.starts, self.decay)
        if isinstance(self.ageing, Scaled):
            self._scale_(self.ageing, ends)
        elif isinstance(self.ageing, Recomputed):
            self._recompute_(optimizer, self.ageing, ends)
        else:
            raise InputError("an ageing is Scaled or Recomputed", found=type(self.ageing).__name__)
        for block, value in list(zip(self.blocks, ends, strict=True))[len(self.params) :]:
            block.write(value)

    def _scale_(self, ageing: Scaled, ends: list[Tensor]) -> None:
        """end + (start - end) w with w = 1 - k(a)/k(t), exactly 0 for old ages: they keep their bits."""
        self.old.fill_(ageing.at(self.group, self.count))
        torch.take(self.first, self.index, out=self.weight)
        torch.addcdiv(self.one, self.weight, self.last, value=-1, out=self.weight)
        torch._foreach_lerp_(ends, self.starts, self.by_age[0])

    def _recompute_(self, optimizer: Optimizer, ageing: Recomputed, ends: list[Tensor]) -> None:
        torch.index_select(self.curve, 1, self.index, out=self.factors)
        young, group = self.index < self.span, self.group
        masks = young.split([b.age.numel() for b in self.blocks])
        for i, (block, start, end) in enumerate(zip(self.blocks, self.starts, ends, strict=True)):
            grad = block.read(cast(Tensor, block.param.grad)).to(self.dtype)
            # a coupled decay goes with decay 1, so that start is where the step began
            grad = (-grad if group.get("maximize") else grad) + self.coupled * start
            state = optimizer.state[block.param]
            slots = {n: block.read(state[n]).to(self.dtype) for n in ageing.averages}
            way = ageing.direction(grad, slots, [row[i] for row in self.by_age], group["eps"])
            end.copy_(torch.where(masks[i].view(block.age.shape), start - group["lr"] * way, end))


def settle_averages(ages: Ages, state: dict[str, Any], group: dict[str, Any], ageing: Ageing) -> None:
    span = ageing.span(group)
    age = (ages.count - ages.all_births()).clamp(max=span)
    for name, position in ageing.averages.items():
        if state.get(name) is None:
            continue
        beta = betas(group)[position]
        factors = np.ones(span + 1)
        # at age 0 the averages are zero
        factors[1:-1] = (1.0 - beta**ages.count) / growth(beta, np.arange(1.0, span))
        state[name].mul_(torch.from_numpy(factors)[age].to(state[name]))
