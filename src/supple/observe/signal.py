"""Instruments on per-sample gradients of the loss: do the samples pull the same way?"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from supple import functional as F
from supple.observe.batch import pick, run_loss
from supple.observe.instruments import instrument
from supple.observe.probe import Probe
from supple.records import Record
from supple.topology.inputs import call

MOST_SAMPLES = 32
MOST_NUMBERS = 100_000_000  # samples x parameters that are held at once
NAMES = ("gradient_diversity", "gradient_snr", "gradient_mean_cosine", "optimization_readiness")


@instrument("gradient_signal", "full", ["gradients", "copy"], NAMES, minimum=8)
def gradient_signal(probe: Probe) -> Iterable[Record]:
    """Diversity, signal-to-noise, mean cosine and readiness of per-sample loss gradients on at most 32 samples.

    Diversity sum |g_i|^2 / |sum g_i|^2 (Yin et al. 2018); signal-to-noise |E g|^2 / tr Cov g; the mean cosine
    is the off-diagonal mean of the gradient covariance of Lyle et al. 2023. ``optimization_readiness`` is strength
    times reliability (cf. arXiv 2605.09044; the form is unverified, see `supple.functional.optimization_readiness`),
    relative to the loss and for steps of as many samples as are read here. The samples are spread evenly over the
    probe; one forward and backward pass for each, in eval mode.
    """
    parameters = list({id(p): p for p in probe.parameters.values() if p.requires_grad}.values())
    size = sum(p.numel() for p in parameters)
    n = min(probe.samples, MOST_SAMPLES)
    if n * size > MOST_NUMBERS:
        reason = f"{size} parameters: {n} gradients of this size are not held at once"
        yield from (probe.unmeasured(name, reason) for name in NAMES)
        return
    index = probe.spread(n)
    try:
        pairs = [_gradient(probe, parameters, index[i : i + 1]) for i in range(n)]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # re-entrant checkpointing refuses gradients of this kind
        yield from (probe.unmeasured(name, f"no per-sample gradient: {error}") for name in NAMES)
        return
    rows = torch.stack([gradient for _, gradient in pairs])
    yield probe.record("gradient_diversity", F.gradient_diversity(rows), samples=n)
    yield probe.record("gradient_snr", F.signal_to_noise(rows), samples=n)
    cosines = F.gradient_cosines(rows)
    off_diagonal = (cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1))
    yield probe.record("gradient_mean_cosine", off_diagonal, samples=n)
    yield from _readiness(probe, rows, torch.stack([loss for loss, _ in pairs]).mean())


def _readiness(probe: Probe, rows: Tensor, loss: Tensor) -> Iterable[Record]:
    n = len(rows)
    if not float(loss) > 0:
        reason = f"it is told relative to the loss, which is {float(loss):g}"
        yield probe.unmeasured("optimization_readiness", reason, samples=n)
        return
    found = F.optimization_readiness(rows, batch_size=n, loss=loss)
    for variant, value in (
        ("", found.readiness),
        ("strength", found.strength),
        ("reliability", found.reliability),
    ):
        if math.isnan(float(value)) and not rows.any():
            yield probe.unmeasured(
                "optimization_readiness", "every gradient is zero", variant=variant, samples=n
            )
        else:
            yield probe.record("optimization_readiness", value, variant=variant, samples=n)


def _gradient(probe: Probe, parameters: list[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of one sample and its gradient, flattened."""
    n = probe.samples
    outputs = call(probe.model, pick(probe.batch.inputs, index, n), probe.forward)
    loss = run_loss(probe.loss_fn, outputs, pick(probe.batch.targets, index, n))
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])
    return loss.detach(), flat
