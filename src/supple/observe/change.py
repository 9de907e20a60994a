"""Instruments on change: what one optimizer step does to samples that it did not see, and to those it saw."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple import functional as F
from supple.errors import SuppleError
from supple.observe.batch import all_finite, as_classes, main_output, pick, run_loss
from supple.observe.copies import clean_copy
from supple.observe.instruments import instrument
from supple.observe.probe import Probe
from supple.records import MEASURED, Record
from supple.status import Status
from supple.topology.inputs import call
from supple.topology.taps import plain_name

FALLBACK_RATE = 1e-2
_FAILURES = (TypeError, ValueError, KeyError, AttributeError, RuntimeError)


@instrument("churn", "standard", ["outputs", "copy"], ["churn"], minimum=4)
def churn(probe: Probe) -> Iterable[Record]:
    """Change of the outputs on every other probe sample after one step on the rest (cf. arXiv 2506.00592).

    The step is made on a copy, in eval mode, by a new optimizer of the user's class and settings (its
    state is fresh: the first step of Adam has the size of the learning rate), or by SGD with rate 0.01;
    the note says which. Where there are classes, ``kl``: mean KL(before || after) in nats, ``ce``: the
    cross-entropy that the authors log (KL plus the entropy before: not zero when nothing changes), ``flip``:
    share of samples whose class changes; ``mse``: mean squared change; ``relative``: mean |change| off
    the batch over mean |change| on it, the only one that can be compared across learning rates.
    """
    before = probe.output
    n = probe.samples
    if before is None or before.ndim < 1 or before.shape[0] == 0 or before.shape[0] % n:
        yield _none(probe, "the outputs have no axis of samples")
        return
    on, off = torch.arange(0, n, 2), torch.arange(1, n, 2)
    twin = clean_copy(probe.model)
    note = _step(probe, twin, on)
    with torch.no_grad():
        after = main_output(call(twin, probe.batch.inputs, probe.forward))
    if after is None or not all_finite(after):
        yield _none(probe, "the outputs after the step are not finite")
        return
    old, new = pick(before.detach(), off, n), pick(after, off, n)
    for row in churn_rows(old, new, pick(probe.batch.targets, off, n), len(off)):
        yield dataclasses.replace(row, step=probe.step, task=probe.task, note=row.note or note)
    inside = (pick(after, on, n) - pick(before.detach(), on, n)).double().abs().mean()
    outside = (new - old).double().abs().mean()
    if float(inside) == 0:
        yield probe.unmeasured(
            "churn", "the step did not move the outputs on its own batch", variant="relative"
        )
    else:
        yield probe.record("churn", outside / inside, variant="relative", samples=len(off), note=note)


def churn_rows(before: Tensor, after: Tensor, targets: Any, samples: int, suffix: str = "") -> list[Record]:
    """Rows ``churn`` of the change between two outputs on the same inputs: mse, and of classes kl, ce, flip."""
    kinds = {"mse": (before, after)}
    old, new = as_classes(before, targets), as_classes(after, targets)
    rows = []
    if old is not None and new is not None:
        kinds |= dict.fromkeys(("kl", "ce", "flip"), (old[0], new[0]))
    for kind in ("mse", "kl", "ce", "flip"):
        variant, status, note = f"{kind}{suffix}", MEASURED, ""
        value = float(F.churn(*kinds[kind], kind=kind)) if kind in kinds else float("nan")
        if kind not in kinds:
            status, note = str(Status.NOT_MEASURED), "not a classification"
        elif value - value != 0:
            status, note = str(Status.INVALID), "the value is not finite"
        rows.append(Record("churn", value, variant=variant, samples=samples, status=status, note=note))
    return rows


@instrument("one_step_gain", "full", ["outputs", "gradients", "copy"], ["one_step_gain"], minimum=4)
def one_step_gain(probe: Probe) -> Iterable[Record]:
    """Share of the loss that one step takes away: on the samples of the step, and on every other one.

    (before - after) / before. The step is the one of ``churn``: on a copy, by a new optimizer of the user's
    class and settings. Negative where the step makes the loss larger.
    """
    n = probe.samples
    on, off = torch.arange(0, n, 2), torch.arange(1, n, 2)
    twin = clean_copy(probe.model)

    def losses() -> list[float]:
        with torch.no_grad():
            sides = [[pick(x, i, n) for x in (probe.batch.inputs, probe.batch.targets)] for i in (on, off)]
            return [float(run_loss(probe.loss_fn, call(twin, x, probe.forward), y)) for x, y in sides]

    before = losses()
    note = _step(probe, twin, on)
    after = losses()
    for variant, old, new, index in zip(("batch", "held_out"), before, after, (on, off), strict=True):
        fields = {"variant": variant, "samples": len(index)}
        if not old > 0:
            reason = f"it is told relative to the loss, which is {old:g}"
            yield probe.unmeasured("one_step_gain", reason, **fields)
        else:
            yield probe.record("one_step_gain", (old - new) / old, note=note, **fields)


def _none(probe: Probe, reason: str) -> Record:
    return probe.unmeasured("churn", reason)


def _step(probe: Probe, twin: nn.Module, index: Tensor) -> str:
    """One step of the copy on the given samples; says which optimizer made it."""
    n = probe.samples
    optimizers, note = like(probe.optimizers, probe.model, twin)
    outputs = call(twin, pick(probe.batch.inputs, index, n), probe.forward)
    loss = run_loss(probe.loss_fn, outputs, pick(probe.batch.targets, index, n))
    if not loss.requires_grad:
        raise SuppleError("no step can be made: the loss does not depend on a trainable parameter")
    loss.backward()
    try:
        for optimizer in optimizers:
            optimizer.step()
        if not optimizers:
            _plain_step(twin)
    except _FAILURES as error:
        if isinstance(error, SuppleError):
            raise
        # some optimizers demand a closure or state of their own; the note says what was done instead
        _plain_step(twin)
        note = f"SGD lr={FALLBACK_RATE:g}, as {note} cannot make a single step here"
    return note


def like(optimizers: Sequence[Optimizer], model: nn.Module, twin: nn.Module) -> tuple[list[Optimizer], str]:
    """New optimizers of the same classes and settings for a copy's parameters, and their description.

    None, with the words for plain SGD, where there is none to build anew.

    >>> net = nn.Linear(2, 2)
    >>> made, note = like([torch.optim.Adam(net.parameters(), lr=0.1)], net, nn.Linear(2, 2))
    >>> note, made[0].param_groups[0]["lr"], len(made[0].state)
    ('Adam lr=0.1', 0.1, 0)
    """
    names = {id(p): plain_name(k) for k, p in model.named_parameters(remove_duplicate=False)}
    copies = {plain_name(k): p for k, p in twin.named_parameters(remove_duplicate=False)}
    made: list[Optimizer] = []
    for optimizer in optimizers:
        groups = []
        for group in optimizer.param_groups:
            mapped = [copies[names[id(p)]] for p in group["params"] if id(p) in names]
            if mapped:
                settings = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
                groups.append({**settings, "params": mapped})
        if not groups:
            continue
        known = inspect.signature(type(optimizer).__init__).parameters
        defaults = {k: copy.deepcopy(v) for k, v in optimizer.defaults.items() if k in known}
        try:
            made.append(type(optimizer)(groups, **defaults))
        except _FAILURES:
            return [], f"SGD lr={FALLBACK_RATE:g}, as {type(optimizer).__name__} could not be built anew"
    if not made:
        return [], f"SGD lr={FALLBACK_RATE:g}"
    return made, " and ".join(_describe(o) for o in made)


@torch.no_grad()
def _plain_step(twin: nn.Module) -> None:
    """SGD by hand: the first `torch.optim` optimizer of a process imports torch's compiler, seconds."""
    for parameter in twin.parameters():
        if parameter.grad is not None:
            parameter.sub_(parameter.grad, alpha=FALLBACK_RATE)


def _describe(optimizer: Any) -> str:
    rate = optimizer.param_groups[0].get("lr")
    return f"{type(optimizer).__name__} lr={float(rate):g}" if rate is not None else type(optimizer).__name__
