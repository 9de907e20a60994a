"""Instruments on the neural tangent kernel of the probe inputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from supple import functional as F
from supple.observe.batch import main_output, pick
from supple.observe.instruments import instrument
from supple.observe.kernel import ntk
from supple.observe.probe import Probe
from supple.records import Record
from supple.topology.inputs import call

MOST_INPUTS = 64
FIELDS = ("rank99", "effective_rank", "condition", "mean_cosine", "trace")


@instrument("ntk", "standard", ["outputs", "copy"], [f"ntk_{f}" for f in FIELDS], minimum=8)
def tangent(probe: Probe) -> Iterable[Record]:
    """Statistics of the trace kernel K_ij = sum_c <df_c(x_i), df_c(x_j)> on at most 64 probe inputs.

    The inputs are spread evenly over the probe. Ranks grow with their number: compare at equal ``samples``;
    ``relative`` variants are divided by it.
    """
    n = min(probe.samples, MOST_INPUTS)
    index = torch.linspace(0, probe.samples - 1, n).round().long()
    inputs = pick(probe.batch.inputs, index, probe.samples)
    try:
        kernel = ntk(
            probe.model, inputs, kind="trace", forward=lambda m, x: main_output(call(m, x, probe.forward))
        )
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        # operations that have no derivative of this kind, re-entrant checkpointing, …
        reason = f"the kernel cannot be computed: {error}"
        yield from (probe.unmeasured(f"ntk_{name}", reason, samples=n) for name in FIELDS)
        return
    statistics = F.kernel_statistics(kernel)
    if bool(kernel.isfinite().all()):
        values = torch.linalg.eigvalsh(kernel.double()).clamp(min=0).flip(-1)
        link = probe.keep("ntk_spectrum", None, values)
    else:
        link = ""
    for name in FIELDS:
        value = float(getattr(statistics, name))
        yield probe.record(f"ntk_{name}", value, samples=n, array=link)
        if name in ("rank99", "effective_rank"):
            yield probe.record(f"ntk_{name}", value / n, variant="relative", samples=n, array=link)
