"""Instruments on the neural tangent kernel of the probe inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from supple import functional as F
from supple.observe.batch import main_output, pick
from supple.observe.instruments import instrument
from supple.observe.kernel import ntk
from supple.observe.probe import Probe
from supple.records import Record
from supple.status import Status
from supple.topology.inputs import call
from supple.topology.taps import layer_modules, weight_shape

MOST_INPUTS, FEWEST_INPUTS = 64, 16
WORK = 8e10  # multiplications of the forward pass, times outputs: a ResNet-18 at 32 x 32 gets 16 inputs
FIELDS = ("rank99", "effective_rank", "condition", "mean_cosine", "trace")


@instrument("ntk", "standard", ["outputs", "copy"], [f"ntk_{f}" for f in FIELDS], minimum=8)
def tangent(probe: Probe) -> Iterable[Record]:
    """Statistics of the trace kernel K_ij = sum_c <df_c(x_i), df_c(x_j)> on at most 64 probe inputs.

    The inputs are spread evenly over the probe. Ranks grow with their number: compare at equal ``samples``;
    ``relative`` variants are divided by it. Large networks get fewer inputs, down to 16: as many as
    8e10 multiplications allow, counted from the shapes, so that a network and its twins get as many.
    """
    n = inputs_within(WORK, probe)
    index = probe.spread(n)
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
    yield from kernel_rows(probe, kernel, "ntk", n)


def kernel_rows(probe: Probe, kernel: Tensor, prefix: str, n: int) -> Iterable[Record]:
    """Rows ``<prefix>_<statistic>`` of a kernel on n inputs; its eigenvalues are kept as ``<prefix>_spectrum``."""
    statistics = F.kernel_statistics(kernel)
    link = ""
    if bool(kernel.isfinite().all()):
        values = torch.linalg.eigvalsh(kernel.double()).clamp(min=0).flip(-1)
        link = probe.keep(f"{prefix}_spectrum", None, values)
    for name in FIELDS:
        value = float(getattr(statistics, name))
        yield _row(probe, f"{prefix}_{name}", value, float(statistics.trace), samples=n, array=link)
        if name in ("rank99", "effective_rank"):
            relative = value / len(kernel)
            yield probe.record(f"{prefix}_{name}", relative, variant="relative", samples=n, array=link)


def inputs_within(work: float, probe: Probe) -> int:
    """How many inputs: min(64, samples, max(16, work / (outputs x multiplications of one forward pass)))."""
    modules = layer_modules(probe.model)
    passes = 0
    for name, calls in probe.taps.pre.items():
        module = modules[name]
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):  # they look up, nothing is multiplied
            positions = sum(c.tensor.numel() // c.tensor.shape[c.unit_dim] for c in calls)
            passes += math.prod(weight_shape(module) or ()) * positions
    outputs = 1 if probe.output is None else probe.output.numel() // probe.samples
    each = max(1.0, outputs * passes / probe.samples)
    return min(probe.samples, MOST_INPUTS, max(FEWEST_INPUTS, int(work / each)))


def _row(probe: Probe, name: str, value: float, trace: float, **fields: Any) -> Record:
    """A row of the kernel; two values that are not finite for a known reason say it."""
    if math.isinf(value) and name.endswith("condition"):
        note = "the smallest eigenvalue is below float64 noise: the condition number is beyond measure"
        return probe.record(name, value, note=note, status=str(Status.NOT_MEASURED), **fields)
    if math.isnan(value) and trace == 0:
        note = "the kernel is zero: no parameter moves any output"
        return probe.unmeasured(name, note, **fields)
    return probe.record(name, value, **fields)
