"""Adam's step count for fresh rows: exact first updates without touching the other rows.

Adam keeps one step count t per tensor, so a row whose moments were zeroed at age 0 is corrected for bias as
if it were t steps old: its first update is (1-b1)/sqrt(1-b2) = 3.2 times the learning rate. Setting t back
to zero would slow every other row by up to 6 times. Here the rows keep an age a of their own, and after each
step the displacement of the young ones is multiplied by

    k(a) / k(t),   k(n) = sqrt(1 - b2^n) / (1 - b1^n)

so that they move as under an Adam with a step count per element. A decoupled weight decay is not rescaled.
Rows of age b2^a < 2e-3 (6,200 steps for b2 = 0.999) are old and left alone. Every other element is
bit for bit where Adam put it. One deviation remains: eps acts as eps * sqrt((1-b2^t) / (1-b2^a)), up to 32
times as strong at age 1, so a fresh row is never faster than the exact form, and slower where sqrt(v) ~ eps.

Moments that are averages over steps with zero gradient follow Adam's own rule: nothing special is done.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.interventions.slices import Slice

Betas: TypeAlias = tuple[float, float]

_OLD = (1e-3, 2e-3)  # b1^a and b2^a below these: the factor is within 1e-3 of 1
_PRUNE_EVERY = 256
_NEVER = -(1 << 40)  # a birth so long ago that it is old


@functools.lru_cache(maxsize=64)
def _growths(betas: Betas) -> list[npt.NDArray[np.float64]]:
    """1 - b1^a and 1 - b2^a for every age at which a row still counts as young."""
    spans = [math.log(old) / math.log(b) if b > 0 else 0.0 for b, old in zip(betas, _OLD, strict=True)]
    ages = np.arange(math.ceil(max(spans)) + 1, dtype=np.float64)
    return [-np.expm1(ages * math.log(b)) if b > 0 else np.sign(ages) for b in betas]


def _factors(betas: Betas, count: int) -> npt.NDArray[np.float64]:
    """k(a) / k(count) by age; exactly 1 for old ages, of which there are as many as occur before a prune."""
    first, second = _growths(betas)
    curve = np.ones(len(first) + _PRUNE_EVERY + 1)
    # age 0 does not occur after a step; its entry is never read
    young = slice(1, len(first))
    curve[young] = np.sqrt(second[1:]) / first[1:]
    curve[young] *= (1.0 - betas[0] ** count) / math.sqrt(1.0 - betas[1] ** count)
    return curve


@dataclass
class _Block:
    """Young positions along one axis of a parameter, or (``index`` None) the whole parameter."""

    dim: int
    index: Tensor | None
    age: Tensor  # broadcastable to the block; where slices cross, of the younger
    before: Tensor | None = None  # the values before the step

    def read(self, param: Tensor) -> Tensor:
        return param if self.index is None else param.index_select(self.dim, self.index)

    def write(self, param: Tensor, values: Tensor) -> None:
        if self.index is None:
            param.copy_(values)
        else:
            param.index_copy_(self.dim, self.index, values)


class _Ages:
    """Births of the reset slices of one parameter, in optimizer steps of that parameter."""

    def __init__(self, param: Tensor, count: int) -> None:
        self.param, self.count = param, count
        # births along dim 0, along dim 1, and of single cells; absent where nothing was reset in that way
        self.births: dict[str, Tensor] = {}
        self.blocks: list[_Block] = []
        self.pending = False  # values were saved, the step is under way
        self.decay: float | Tensor = 1.0  # factor of the decoupled weight decay in this step
        self.betas: Betas = (0.9, 0.999)

    def mark(self, where: Slice) -> None:
        shape = tuple(self.param.shape)
        key, sizes = f"dim{where.dim}", (shape[where.dim],)
        index: tuple[Tensor, ...] = (where.index.cpu(),)
        if where.cells is not None:
            key, sizes, index = "cells", shape[:2], (*index, where.cells.cpu())
        births = self.births.setdefault(key, torch.full(sizes, _NEVER, dtype=torch.int64))
        births[index] = self.count
        self.refresh()

    def prune(self) -> None:
        """Forget the slices that are old."""
        limit = len(_growths(self.betas)[0])
        for key, births in list(self.births.items()):
            births[self.count - births >= limit] = _NEVER
            if bool((births == _NEVER).all()):
                del self.births[key]
        self.refresh()

    def _spread(self, key: str) -> Tensor:
        """Births over rows, columns or cells, shaped to broadcast against the parameter."""
        births = self.births[key]
        lead = (1,) if key == "dim1" else ()
        trail = (1,) * (self.param.dim() - births.dim() - len(lead))
        return births.view(*lead, *births.shape, *trail)

    def all_births(self) -> Tensor:
        return functools.reduce(torch.maximum, [self._spread(k) for k in self.births])

    def refresh(self) -> None:
        """Where few rows and columns are young, a step needs to look at those alone."""
        self.blocks, self.pending = [], False
        if not self.births:
            return
        births, device = self.all_births(), self.param.device
        for key, along in self.births.items():
            young = torch.nonzero(along != _NEVER)
            if key == "cells" or 2 * len(young) > len(along):
                self.blocks = [_Block(0, None, (self.count - births).to(device))]
                return
            dim, index = int(key[-1]), young.flatten()
            self.blocks.append(
                _Block(dim, index.to(device), (self.count - births.index_select(dim, index)).to(device))
            )

    def save(self, group: dict[str, Any]) -> None:
        self.pending, self.betas = True, _betas(group)
        decoupled = group.get("decoupled_weight_decay", False) and group["weight_decay"] != 0
        self.decay = 1 - group["lr"] * group["weight_decay"] if decoupled else 1.0
        param = self.param.detach()
        for block in self.blocks:
            block.before = param.clone() if block.index is None else block.read(param)

    def moves(self, table: Tensor) -> list[_Move]:
        """What this step did to the young elements, and the factors; read before anything is written."""
        param, found = self.param.detach(), []
        for block in self.blocks:
            if block.before is None:
                continue
            start, moved = block.before.to(table.dtype), block.read(param).to(table.dtype)
            if not (isinstance(self.decay, float) and self.decay == 1.0):
                start = start * self.decay
            age = block.age.add_(1)
            if block.index is None:  # here alone are elements that were never reset
                age = age.clamp(max=len(table) - 1)
            found.append(_Move(param, block, start, moved, table.take(age)))
            block.before = None
        return found


@dataclass
class _Move:
    """A block whose displacement is to be multiplied by ``factor``."""

    param: Tensor
    block: _Block
    start: Tensor
    moved: Tensor
    factor: Tensor


def _scale_(moves: list[_Move]) -> None:
    """start + (moved - start) * k(a)/k(t); `lerp` with weight 1 returns the moved value bit for bit.

    In one call for all parameters. Where a row crosses a column, both blocks hold the same value.
    """
    if not moves:
        return
    starts = [m.start for m in moves]  # copies of this step, free to be overwritten
    torch._foreach_lerp_(starts, [m.moved for m in moves], [m.factor for m in moves])
    for move, value in zip(moves, starts, strict=True):
        move.block.write(move.param, value.to(move.param.dtype))


def _betas(group: dict[str, Any]) -> Betas:
    beta1, beta2 = group["betas"]
    return float(beta1), float(beta2)


def skips(optimizer: Optimizer) -> bool:
    """Whether this call of ``step`` will move nothing: a fused optimizer was told of infinite gradients.

    With a fused optimizer, ``GradScaler.step`` calls ``optimizer.step`` even then, and the kernel leaves
    the parameters alone; such a step does not count.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found.item())


class Compensation:
    """The young slices of one optimizer, and the two step hooks that watch them. Made by `mark`."""

    def __init__(self) -> None:
        self.ages: dict[Tensor, _Ages] = {}
        self.holders = 0
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
        self.listen(optimizer)

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
        if not self.ages:
            return
        for group in optimizer.param_groups:
            for param in group["params"]:
                ages = self.ages.get(param)
                if ages is not None and param.grad is not None:
                    ages.save(group)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self.ages or skips(optimizer):
            return
        tables: dict[tuple[Any, ...], Tensor] = {}
        stepped = [(param, ages) for param, ages in self.ages.items() if ages.pending]
        moves: list[_Move] = []
        for _, ages in stepped:
            ages.pending = False
            ages.count += 1
            moves += ages.moves(_table(tables, ages))
        _scale_(moves)
        for param, ages in stepped:
            if ages.count % _PRUNE_EVERY == 0:
                ages.prune()
                if not ages.births:
                    del self.ages[param]

    @torch.no_grad()
    def settle_(self, optimizer: Optimizer) -> None:
        """Give up the ages: store bias-free moments in the young slices; plain Adam goes on from there."""
        for group in optimizer.param_groups:
            for param in group["params"]:
                ages = self.ages.pop(param, None)
                if ages is not None:
                    _settle_moments(ages, optimizer.state[param], _betas(group))

    def remove(self) -> None:
        for hook in (self._pre_hook, self._post_hook):
            if hook is not None:
                hook.remove()
        self._pre_hook = self._post_hook = None


def _table(tables: dict[tuple[Any, ...], Tensor], ages: _Ages) -> Tensor:
    """Factors by age in the precision of the parameter (float32 at least), shared within one step."""
    dtype = ages.param.dtype if ages.param.dtype == torch.float64 else torch.float32
    key = (ages.betas, ages.count, dtype, ages.param.device)
    if key not in tables:
        factors = torch.from_numpy(_factors(ages.betas, ages.count))
        tables[key] = factors.to(device=ages.param.device, dtype=dtype)
    return tables[key]


def _settle_moments(ages: _Ages, state: dict[str, Any], betas: Betas) -> None:
    age = ages.count - ages.all_births()
    slots = (("exp_avg",), ("exp_avg_sq", "max_exp_avg_sq"))
    for growth, beta, names in zip(_growths(betas), betas, slots, strict=True):
        factors = np.ones(len(growth) + 1)
        factors[1:-1] = (1.0 - beta**ages.count) / growth[1:]  # at age 0 the moments are zero
        factor = torch.from_numpy(factors)[age.clamp(max=len(growth))]
        for name in names:
            if state.get(name) is not None:
                state[name].mul_(factor.to(state[name]))


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
        if name in state:
            ages = shared.ages[param] = _Ages(param, int(state[name]["count"]))
            ages.births = {k: b.cpu().clone() for k, b in state[name]["births"].items()}
            ages.refresh()
            shared.listen(optimizer)
