"""Plasticity itself as an instrument: copies of the network and of fresh twins learn new tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable

from supple.observe.instruments import instrument
from supple.observe.probe import Probe
from supple.records import Record
from supple.status import Status

BUDGET = 30.0  # seconds


@instrument("trainability", "training", ["outputs", "copy"], ["trainability"], minimum=8)
def trainability(probe: Probe) -> Iterable[Record]:
    """What the network learns of fresh random-target tasks, over what fresh twins learn; 30 s at most.

    The measurement of `supple.trainability`, step 0 of a diagnosis, with its 95 % interval: the ratio, the two
    scores behind it, and the ratio where the old answers have to be unlearned first (``with_unlearning``). It
    trains copies: in no bundle, asked for by name. Needs a reference.
    """
    from supple import api

    if probe.reference is None:
        yield probe.unmeasured("trainability", "no reference: pass reference=factory")
        return
    seen = api.trainability(
        probe.model, (probe.batch.inputs, probe.batch.targets), probe.loss_fn, reference=probe.reference,
        optimizer=probe.optimizers or None, forward=probe.forward, budget=BUDGET,
    )  # fmt: skip
    if math.isnan(seen.ratio):
        status = str(Status.INVALID if seen.status is Status.INVALID else Status.NOT_MEASURED)
        yield probe.unmeasured("trainability", seen.reason, status=status)
        return
    note = f"{seen.score}, {seen.steps} steps; {seen.optimizer}"
    pairs = {"samples": len(seen.scores), "note": note}
    yield probe.record("trainability", seen.ratio, lo=seen.lo, hi=seen.hi, **pairs)
    for variant, scores in (("score", seen.scores), ("twin_score", seen.twin_scores)):
        yield probe.record("trainability", sum(scores) / len(scores), variant=variant, **pairs)
    if math.isnan(seen.cold):
        yield probe.unmeasured("trainability", "the budget did not allow it", variant="with_unlearning")
    else:
        yield probe.record("trainability", seen.cold, variant="with_unlearning", **pairs)
