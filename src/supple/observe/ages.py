"""Unit age, where an attached intervention keeps one: how long ago each unit was born."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.observe.instruments import instrument
from supple.observe.probe import Probe
from supple.records import Record

NOBODY = "no intervention that keeps unit ages is attached to the optimizer"
FORMS = {"median": torch.median, "mean": torch.mean, "max": torch.max}


@instrument("unit_age", "economy", [], ["unit_age"])
def unit_age(probe: Probe) -> Iterable[Record]:
    """Optimizer steps since each unit was last born, by layer: median, mean and largest.

    Read from whatever is hooked to the optimizer's steps and has ``ages``, a mapping from layer to a vector
    with one age per unit (`supple.interventions.ContinualBackprop`). Pooled over all units that have an age.
    """
    ages: dict[str, Tensor] = {}
    for found in _kept(probe.optimizers):
        ages.update({k: v for k, v in found.items() if k in _layers(probe)})
    if not ages:
        yield probe.unmeasured("unit_age", NOBODY)
        return
    for view in probe.layers:
        if view.name in ages:
            link = probe.keep("unit_ages", view, ages[view.name])
            for form, read in FORMS.items():
                value = read(ages[view.name].double())
                yield probe.record("unit_age", value, view, variant=form, array=link)
    every = torch.cat([a.double().cpu() for a in ages.values()])
    note = f"over {len(every)} units of {len(ages)} layers"
    for form, read in FORMS.items():
        yield probe.record("unit_age", read(every), variant=form, note=note)


def _layers(probe: Probe) -> Mapping[str, object]:
    return probe.topology.layers if probe.topology is not None else {}


def _kept(optimizers: Iterable[Optimizer]) -> Iterator[Mapping[str, Tensor]]:
    """The ages kept by the owners of the optimizers' step hooks."""
    seen: set[int] = set()
    for optimizer in optimizers:
        for hook in optimizer._optimizer_step_post_hooks.values():
            owner = getattr(hook, "__self__", None)
            ages = getattr(owner, "ages", None)
            if id(owner) in seen or not isinstance(ages, Mapping) or not ages:
                continue
            seen.add(id(owner))
            vectors = all(isinstance(k, str) and isinstance(v, Tensor) and v.ndim == 1 and v.numel()
                          for k, v in ages.items())  # fmt: skip
            if vectors:
                yield ages
