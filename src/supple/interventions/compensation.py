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
from typing import Any, NamedTuple, TypeAlias, cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.interventions.base import skips
from supple.interventions.slices import Slice

Array: TypeAlias = npt.NDArray[np.float64]
Betas: TypeAlias = tuple[float, float]
Rows: TypeAlias = npt.NDArray[np.int64] | None

_OLD = (1e-3, 2e-3)  # b1^a and b2^a below these: the factor is within 1e-3 of 1
_PRUNE_EVERY = 256
_NEVER = -1


class _Saved(NamedTuple):
    """A parameter before the step, and what its group said then."""

    values: Tensor  # the young part, or the whole parameter
    rows: Tensor | None  # positions along dim 0 when only those were saved
    decay: float | Tensor  # factor of the decoupled weight decay
    betas: Betas


@functools.lru_cache(maxsize=64)
def _growth_tables(betas: Betas) -> tuple[Array, Array]:
    """1 - b1^a and 1 - b2^a for every age at which a row still counts as young."""
    spans = [math.log(old) / math.log(b) if b > 0 else 0.0 for b, old in zip(betas, _OLD, strict=True)]
    ages = np.arange(math.ceil(max(spans)) + 1, dtype=np.float64)
    first, second = (-np.expm1(ages * math.log(b)) if b > 0 else np.sign(ages) for b in betas)
    return first, second


class _Ages:
    """Births of the reset slices of one parameter, in optimizer steps of that parameter."""

    def __init__(self, param: Tensor, count: int) -> None:
        self.param, self.count = param, count
        # births along dim 0, along dim 1, and of single cells; absent where nothing was reset in that way
        self.births: dict[str, npt.NDArray[np.int64]] = {}
        self.rows: Rows = None  # young positions along dim 0, when they are few
        self.saved: _Saved | None = None

    def mark(self, where: Slice) -> None:
        shape = tuple(self.param.shape)
        index = (where.index.cpu().numpy(),)
        if where.cells is not None:
            key, sizes = "cells", shape[:2]
            index = (*index, where.cells.cpu().numpy())
        else:
            key, sizes = f"dim{where.dim}", (shape[where.dim],)
        births = self.births.setdefault(key, np.full(sizes, _NEVER, dtype=np.int64))
        births[index] = self.count
        self.refresh()

    def prune(self, betas: Betas) -> None:
        """Forget the slices that are old."""
        limit = len(_growth_tables(betas)[0])
        for key, births in list(self.births.items()):
            births[self.count - births >= limit] = _NEVER
            if (births == _NEVER).all():
                del self.births[key]
        self.refresh()

    def refresh(self) -> None:
        """Where only rows are young and they are few, a step needs to look at those rows alone."""
        self.rows = None
        if set(self.births) == {"dim0"}:
            young = np.flatnonzero(self.births["dim0"] != _NEVER)
            if 2 * len(young) <= len(self.births["dim0"]):
                self.rows = young

    def _spread(self, values: Array, key: str) -> Tensor:
        """A vector over rows or columns (or cells), shaped to broadcast against the parameter."""
        lead = 1 if key == "dim1" else 0
        trail = self.param.dim() - values.ndim - lead
        shaped = torch.from_numpy(values.reshape((1,) * lead + values.shape + (1,) * trail))
        return shaped.to(device=self.param.device, dtype=_compute_dtype(self.param))

    def growths(self, betas: Betas, rows: Rows) -> list[dict[str, Array]]:
        """(1 - b^a) / (1 - b^t) for b1 and b2, by kind of slice; 1 where nothing was reset."""
        result: list[dict[str, Array]] = [{}, {}]
        tables = _growth_tables(betas)
        for key, births in self.births.items():
            births = births if rows is None else births[rows]
            age = np.minimum(self.count - births, len(tables[0]) - 1)
            for out, beta, table in zip(result, betas, tables, strict=True):
                part = table[age] / (1.0 - beta**self.count)
                part[(births == _NEVER) | (self.count - births >= len(table))] = 1.0
                out[key] = part
        return result

    def factor(self, betas: Betas, rows: Rows) -> Tensor:
        """k(a) / k(t), broadcastable to the parameter or its rows; where slices cross the youngest counts."""
        first, second = self.growths(betas, rows)
        if len(first) == 1:
            (key,) = first
            return self._spread(np.sqrt(second[key]) / first[key], key)
        youngest = [
            functools.reduce(torch.minimum, [self._spread(v, k) for k, v in parts.items()])
            for parts in (first, second)
        ]
        return youngest[1].sqrt_().div_(youngest[0])


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
                if ages is not None:
                    ages.saved = _save(ages, group) if param.grad is not None else None

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self.ages or skips(optimizer):
            return
        for param, ages in list(self.ages.items()):
            if ages.saved is None:
                continue
            saved, ages.saved = ages.saved, None
            ages.count += 1
            if ages.count % _PRUNE_EVERY == 0:
                ages.prune(saved.betas)
            if ages.births:
                _correct(ages, saved)
            else:
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


def _betas(group: dict[str, Any]) -> tuple[float, float]:
    beta1, beta2 = group["betas"]
    return float(beta1), float(beta2)


def _compute_dtype(param: Tensor) -> torch.dtype:
    return param.dtype if param.dtype == torch.float64 else torch.float32


def _save(ages: _Ages, group: dict[str, Any]) -> _Saved:
    values = ages.param.detach()
    rows = None if ages.rows is None else torch.from_numpy(ages.rows).to(values.device)
    values = values.clone() if rows is None else values.index_select(0, rows)
    decoupled = group.get("decoupled_weight_decay", False) and group["weight_decay"] != 0
    decay = 1 - group["lr"] * group["weight_decay"] if decoupled else 1.0
    return _Saved(values, rows, decay, _betas(group))


def _correct(ages: _Ages, saved: _Saved) -> None:
    """start + (moved - start) * k(a)/k(t); `lerp` with weight 1 returns the moved value bit for bit."""
    param = ages.param.detach()
    moved = param if saved.rows is None else param.index_select(0, saved.rows)
    rows = None if saved.rows is None else saved.rows.cpu().numpy()
    factor = ages.factor(saved.betas, rows).expand_as(moved)
    start = saved.values * saved.decay
    new = torch.lerp(start.to(factor.dtype), moved.to(factor.dtype), factor)
    if saved.rows is None:
        param.copy_(new)
    else:
        param.index_copy_(0, saved.rows, new.to(param.dtype))


def _settle_moments(ages: _Ages, state: dict[str, Any], betas: Betas) -> None:
    slots = (("exp_avg",), ("exp_avg_sq", "max_exp_avg_sq"))
    for parts, names in zip(ages.growths(betas, None), slots, strict=True):
        spread = [ages._spread(v, k) for k, v in parts.items()]
        growth = functools.reduce(torch.minimum, spread)
        factor = torch.where(growth > 0, 1.0 / growth, torch.ones_like(growth))
        for name in names:
            if state.get(name) is not None:
                state[name].mul_(factor)


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
        names[p]: {"count": a.count, "births": {k: torch.from_numpy(b.copy()) for k, b in a.births.items()}}
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
            ages.births = {k: b.cpu().numpy().copy() for k, b in state[name]["births"].items()}
            ages.refresh()
            shared.listen(optimizer)
