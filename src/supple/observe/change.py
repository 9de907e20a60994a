"""Instruments on change: churn of one optimizer step, measured on inputs that the step did not see."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple import functional as F
from supple.errors import SuppleError
from supple.observe.batch import as_classes, main_output, pick, run_loss
from supple.observe.copies import clean_copy
from supple.observe.instruments import instrument
from supple.observe.probe import Probe
from supple.records import Record
from supple.topology.inputs import call
from supple.topology.taps import plain_name

VARIANTS = ("kl", "mse", "flip", "relative")
FALLBACK_RATE = 1e-2
_FAILURES = (TypeError, ValueError, KeyError, AttributeError, RuntimeError)


@instrument("churn", "standard", ["outputs", "copy"], ["churn"], minimum=4)
def churn(probe: Probe) -> Iterable[Record]:
    """Change of the outputs on every other probe sample after one step on the rest (cf. arXiv 2506.00592).

    The step is made on a copy, in eval mode, by a new optimizer of the user's class and settings (its
    state is fresh: the first step of Adam has the size of the learning rate), or by SGD with rate 0.01;
    the note says which. ``kl``: mean KL(before || after) in nats, ``flip``: share of samples whose class
    changes (both where there are classes); ``mse``: mean squared change; ``relative``: mean |change| off
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
    if after is None or not bool(after.isfinite().all()):
        yield _none(probe, "the outputs after the step are not finite")
        return
    old, new = pick(before.detach(), off, n), pick(after, off, n)
    fields = {"samples": len(off), "note": note}
    yield probe.record("churn", F.churn(old, new, kind="mse"), variant="mse", **fields)
    targets = pick(probe.batch.targets, off, n)
    old_classes, new_classes = as_classes(old, targets), as_classes(new, targets)
    for kind in ("kl", "flip"):
        if old_classes is None or new_classes is None:
            yield probe.unmeasured("churn", "not a classification", variant=kind)
        else:
            value = F.churn(old_classes[0], new_classes[0], kind=kind)
            yield probe.record("churn", value, variant=kind, **fields)
    inside = (pick(after, on, n) - pick(before.detach(), on, n)).double().abs().mean()
    outside = (new - old).double().abs().mean()
    if float(inside) == 0:
        yield probe.unmeasured(
            "churn", "the step did not move the outputs on its own batch", variant="relative"
        )
    else:
        yield probe.record("churn", outside / inside, variant="relative", **fields)


def _none(probe: Probe, reason: str) -> Record:
    return probe.unmeasured("churn", reason)


def _step(probe: Probe, twin: nn.Module, index: Tensor) -> str:
    """One step of the copy on the given samples; says which optimizer made it."""
    n = probe.samples
    optimizers, note = like(probe.optimizers, probe.model, twin)
    outputs = call(twin, pick(probe.batch.inputs, index, n), probe.forward)
    run_loss(probe.loss_fn, outputs, pick(probe.batch.targets, index, n)).backward()
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
