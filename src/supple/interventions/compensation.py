"""The step count of fresh rows: exact first updates without touching the other rows.

Adam keeps one step count t per tensor, so a row whose moments were zeroed at age 0 is corrected for bias as
if it were t steps old: its first update is (1-b1)/sqrt(1-b2) = 3.2 times the learning rate. Setting t back
to zero would slow every other row by up to 6 times. Here the rows keep an age a of their own, and after each
step the displacement of the young ones is multiplied by

    k(a) / k(t),   k(n) = sqrt(1 - b2^n) / (1 - b1^n)

so that they move as under an Adam with a step count per element (Adamax: k(n) = 1 / (1 - b1^n)); NAdam and
RAdam, whose update is no such product, have their young rows moved anew from the state (`supple.fresh.ageing`).
A decoupled weight decay is not rescaled. Rows of age b2^a < 2e-3 (6,200 steps for b2 = 0.999) are old and left
alone. Every other element is bit for bit where the optimizer put it. One deviation remains: Adam's eps acts as
eps * sqrt((1-b2^t) / (1-b2^a)), up to 32 times as strong at age 1, so a fresh row is never faster than the
exact form, and slower where sqrt(v) ~ eps.

Moments that are averages over steps with zero gradient follow Adam's own rule: nothing special is done.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.errors import InputError
from supple.fresh import Ageing, Recomputed, Scaled, rule_for
from supple.fresh.ageing import betas, growth
from supple.fresh.optimizers import group_of
from supple.interventions.slices import Slice

_PRUNE_EVERY = 256
_NEVER = -(1 << 40)  # a birth so long ago that it is old
#: up to this many elements, moving a whole parameter is cheaper than gathering its young slices
_WHOLE = {"cpu": 1 << 15}
_WHOLE_ELSEWHERE = 1 << 20  # where a call costs more than its elements


@dataclass
class _Block:
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


class _Ages:
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

    def blocks(self) -> list[_Block]:
        """Where a large parameter has few young rows and columns, a step needs to look at those alone."""
        if not self.births:
            return []
        births, device, param = self.all_births(), self.param.device, self.param
        whole = [_Block(param, 0, None, (self.count - births).to(device))]
        if param.numel() <= _WHOLE.get(device.type, _WHOLE_ELSEWHERE) or "cells" in self.births:
            return whole
        found = []
        for key, along in self.births.items():
            young = torch.nonzero(along != _NEVER).flatten()
            if 2 * len(young) > len(along):
                return whole
            dim = int(key[-1])
            age = self.count - births.index_select(dim, young)
            found.append(_Block(param, dim, young.to(device), age.to(device)))
        return found


class _Pack:
    """The blocks of a parameter group with one step count: all of them are moved by the same few calls.

    Where a row crosses a column, both blocks hold the same value.
    """

    def __init__(
        self, ageing: Ageing, group: dict[str, Any], ages: list[_Ages], curves: dict[Any, Tensor]
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
            full = np.pad(numbers, ((0, 0), (0, _PRUNE_EVERY + 1)))
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


def skips(optimizer: Optimizer) -> bool:
    """Whether this call of ``step`` will move nothing: a fused optimizer was told of infinite gradients.

    With a fused optimizer, ``GradScaler.step`` calls ``optimizer.step`` even then, and the kernel leaves
    the parameters alone; such a step does not count.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found.item())


def closure_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The closure that ``step`` was given, None without one."""
    return kwargs.get("closure") or next((a for a in args if callable(a)), None)


class Compensation:
    """The young slices of one optimizer, and the two step hooks that watch them. Made by `mark`.

    It must not hold the optimizer, which would then live for ever: the table of all of them is weak in it.
    """

    def __init__(self) -> None:
        self.ages: dict[Tensor, _Ages] = {}
        self.holders = 0
        self._packs: list[_Pack] = []
        self._curves: dict[Any, Tensor] = {}  # what depends on the age, by settings
        self._pending: list[_Ages] = []  # values were saved, the step is under way
        self._pre_hook: Any = None
        self._post_hook: Any = None

    def mark(self, optimizer: Optimizer, param: Tensor, where: Slice) -> None:
        """This slice was reset now: its age starts at 0."""
        ages = self.ages.get(param)
        if ages is None:
            step = optimizer.state.get(param, {}).get("step")
            if step is None or float(step) == 0:
                return  # a parameter that was never stepped has only young rows
            ages = self.ages[param] = _Ages(param, int(step))
        ages.mark(where)
        self.renew()
        self.listen(optimizer)

    def renew(self) -> None:
        """The births changed."""
        self._packs = []

    def listen(self, optimizer: Optimizer) -> None:
        # A hook may not be added to the list that is being walked, and `mark` runs inside post-hooks: so
        # it adds the pre-hook only, and the pre-hook adds the post-hook.
        if self._pre_hook is None:
            self._pre_hook = optimizer.register_step_pre_hook(self._before)

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._post_hook is None:
            self._post_hook = optimizer.register_step_post_hook(self._after)
            # before any hook that writes parameters after the step
            hooks = cast("OrderedDict[int, Any]", optimizer._optimizer_step_post_hooks)
            hooks.move_to_end(self._post_hook.id, last=False)
        self._pending = []
        if closure_of(args, kwargs) is None:  # otherwise the handle says when the gradients are there
            self.ready(optimizer)

    @torch.no_grad()
    def ready(self, optimizer: Optimizer) -> None:
        """The gradients of the step are there, the parameters not yet moved."""
        self._pending = []
        if not self.ages:  # nothing was reset, so the optimizer may be one that no reset knows
            return
        ageing = rule_for(optimizer).ageing
        if ageing is None:
            return
        groups = optimizer.param_groups
        known = sum(len(p.ages) for p in self._packs) == len(self.ages)  # nothing outside may step
        if not (known and all(p.fits(groups) for p in self._packs)):
            self._pack(optimizer, ageing)
        self._pending = [a for p in self._packs for a in p.ages]
        for pack in self._packs:
            pack.save()

    def _pack(self, optimizer: Optimizer, ageing: Ageing) -> None:
        """Group what the coming step moves by settings, count, precision and place."""
        packed: dict[tuple[Any, ...], tuple[dict[str, Any], list[_Ages]]] = {}
        for group in optimizer.param_groups:
            for param in group["params"]:
                ages = self.ages.get(param)
                if ages is not None and param.grad is not None:
                    key = (id(group), ages.count, param.dtype, param.device)
                    packed.setdefault(key, (group, []))[1].append(ages)
        self._packs = [_Pack(ageing, group, ages, self._curves) for group, ages in packed.values()]

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if skips(optimizer):
            return
        for ages in self._pending:
            ages.count += 1
        for pack in self._packs if self._pending else ():
            pack.move(optimizer)
        self._prune(optimizer)
        self._pending = []

    def _prune(self, optimizer: Optimizer) -> None:
        due = [a for a in self._pending if a.count % _PRUNE_EVERY == 0]
        ageing = rule_for(optimizer).ageing
        if ageing is None:
            return
        for ages in due:
            ages.prune(ageing.span(group_of(optimizer, ages.param)))
            if not ages.births:
                del self.ages[ages.param]
        if due:
            self.renew()

    @torch.no_grad()
    def settle_(self, optimizer: Optimizer) -> None:
        """Give up the ages: store bias-free averages in the young slices; the optimizer goes on from there."""
        if not self.ages:  # nothing was reset, so the optimizer may be one that no reset knows
            return
        ageing = rule_for(optimizer).ageing
        for group in optimizer.param_groups:
            for param in group["params"]:
                ages = self.ages.pop(param, None)
                if ages is not None and ageing is not None:
                    _settle_averages(ages, optimizer.state[param], group, ageing)
        self.renew()

    def remove(self) -> None:
        for hook in (self._pre_hook, self._post_hook):
            if hook is not None:
                hook.remove()
        self._pre_hook = self._post_hook = None


def _settle_averages(ages: _Ages, state: dict[str, Any], group: dict[str, Any], ageing: Ageing) -> None:
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


_ALL: WeakKeyDictionary[Optimizer, Compensation] = WeakKeyDictionary()


def compensation_of(optimizer: Optimizer) -> Compensation:
    """The one compensation of this optimizer, shared by everything that resets through it."""
    found = _ALL.get(optimizer)
    if found is None:
        found = _ALL[optimizer] = Compensation()
    return found


def hold(optimizer: Optimizer) -> None:
    """An intervention that resets is attached to this optimizer."""
    compensation_of(optimizer).holders += 1


def release(optimizer: Optimizer) -> None:
    """It was detached: with the last one the ages are settled and the hooks removed."""
    shared = compensation_of(optimizer)
    shared.holders -= 1
    if shared.holders <= 0:
        shared.settle_(optimizer)
        shared.remove()
        _ALL.pop(optimizer, None)


def state_of(optimizer: Optimizer, names: dict[Tensor, str]) -> dict[str, Any]:
    """Plain state by parameter name."""
    shared = _ALL.get(optimizer)
    ages = {} if shared is None else shared.ages
    return {
        names[p]: {"count": a.count, "births": {k: b.clone() for k, b in a.births.items()}}
        for p, a in ages.items()
        if p in names
    }


def load_state(optimizer: Optimizer, names: dict[Tensor, str], state: dict[str, Any]) -> None:
    """Inverse of `state_of`; replaces what is known of the named parameters."""
    shared = compensation_of(optimizer)
    for param, name in names.items():
        shared.ages.pop(param, None)
        shared.renew()
        if name in state:
            ages = shared.ages[param] = _Ages(param, int(state[name]["count"]))
            ages.births = {k: b.cpu().clone() for k, b in state[name]["births"].items()}
            shared.listen(optimizer)
