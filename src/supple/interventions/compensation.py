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

from collections import OrderedDict
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.fresh import Ageing, rule_for
from supple.fresh.optimizers import group_of
from supple.interventions.slices import Slice
from supple.interventions.young import PRUNE_EVERY, Ages, Pack, settle_averages
from supple.stepping import closure_of, skips


class Compensation:
    """The young slices of one optimizer, and the two step hooks that watch them. Made by `mark`.

    It must not hold the optimizer, which would then live for ever: the table of all of them is weak in it.
    """

    def __init__(self) -> None:
        self.ages: dict[Tensor, Ages] = {}
        self.holders = 0
        self._packs: list[Pack] = []
        self._curves: dict[Any, Tensor] = {}  # what depends on the age, by settings
        self._pending: list[Ages] = []  # values were saved, the step is under way
        self._pre_hook: Any = None
        self._post_hook: Any = None

    def mark(self, optimizer: Optimizer, param: Tensor, where: Slice) -> None:
        """This slice was reset now: its age starts at 0."""
        ages = self.ages.get(param)
        if ages is None:
            step = optimizer.state.get(param, {}).get("step")
            if step is None or float(step) == 0:
                return  # a parameter that was never stepped has only young rows
            ages = self.ages[param] = Ages(param, int(step))
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
        packed: dict[tuple[Any, ...], tuple[dict[str, Any], list[Ages]]] = {}
        for group in optimizer.param_groups:
            for param in group["params"]:
                ages = self.ages.get(param)
                if ages is not None and param.grad is not None:
                    key = (id(group), ages.count, param.dtype, param.device)
                    packed.setdefault(key, (group, []))[1].append(ages)
        self._packs = [Pack(ageing, group, ages, self._curves) for group, ages in packed.values()]

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
        due = [a for a in self._pending if a.count % PRUNE_EVERY == 0]
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
                    settle_averages(ages, optimizer.state[param], group, ageing)
        self.renew()

    def remove(self) -> None:
        for hook in (self._pre_hook, self._post_hook):
            if hook is not None:
                hook.remove()
        self._pre_hook = self._post_hook = None


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
            ages = shared.ages[param] = Ages(param, int(state[name]["count"]))
            ages.births = {k: b.cpu().clone() for k, b in state[name]["births"].items()}
            shared.listen(optimizer)
