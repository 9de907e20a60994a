"""Instruments on the full kernel: its statistics, and the curvature of the loss that follows from it.

n inputs, C outputs per input, P parameters. Nothing of size n P or P P is built.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from supple import functional as F
from supple.errors import SuppleError
from supple.observe.batch import main_output, pick, run_loss
from supple.observe.instruments import instrument
from supple.observe.kernel import ntk, plain_eager
from supple.observe.probe import Probe
from supple.observe.tangent import FIELDS, WORK, inputs_within, kernel_rows
from supple.records import Record
from supple.topology.inputs import call

MOST_ROWS, FEWEST_INPUTS = 2048, 8  # of the full kernel; a kernel of fewer inputs says little
SHARE = ("max", "trace", "effective_rank", "rank99")
KERNELS = [f"ntk_{kind}_{field}" for kind in ("full", "scalar") for field in FIELDS]
SPECTRA = [f"{matrix}_{name}" for matrix in ("ggn", "fisher") for name in SHARE]
HESSIAN_STEPS = 20


@instrument(
    "curvature", "full", ["outputs", "gradients", "copy"], [*KERNELS, *SPECTRA, "hessian_max"], minimum=8
)
def curvature(probe: Probe) -> Iterable[Record]:
    """Full and scalar kernel, Gauss-Newton and empirical-Fisher spectrum from the same factors, top of the Hessian.

    On at most 64 inputs, as ``ntk``, and so few that the full kernel has at most 2048 rows (n C); fewer than 8
    inputs are not measured. The loss of a sample is ``loss_fn`` on it alone. ``ggn``: J^T H J of the mean of those
    losses, by its equal spectrum H^(1/2) K H^(1/2) (Schraudolph 2002); ``fisher``: (1/n) sum g_i g_i^T at the given
    targets; both without the zeros. ``hessian_max``: largest eigenvalue of the Hessian of the loss on the same
    inputs, at most 20 Lanczos steps of Hessian-vector products; ``error`` is its relative residual.
    """
    width = 0 if probe.output is None else probe.output.numel() // probe.samples
    n = min(inputs_within(WORK, probe), MOST_ROWS // max(1, width))
    if n < FEWEST_INPUTS:
        reason = f"{width} outputs per sample: the full kernel of {FEWEST_INPUTS} inputs has more than {MOST_ROWS} rows"
        yield from (probe.unmeasured(name, reason) for name in (*KERNELS, *SPECTRA))
    else:
        yield from _from_kernel(probe, probe.spread(n))
    yield _hessian(probe, probe.spread(max(n, min(FEWEST_INPUTS, probe.samples))))


def _from_kernel(probe: Probe, index: Tensor) -> Iterable[Record]:
    inputs, n = pick(probe.batch.inputs, index, probe.samples), len(index)
    try:
        kernels = {
            kind: ntk(
                probe.model, inputs, kind=kind, forward=lambda m, x: main_output(call(m, x, probe.forward))
            )
            for kind in ("full", "scalar")
        }
        gradients, hessians = _loss_derivatives(probe, index)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, SuppleError) as error:
        # operations that have no derivative of this kind, samples that are coupled, …
        yield from (
            probe.unmeasured(x, f"it cannot be computed: {error}", samples=n) for x in (*KERNELS, *SPECTRA)
        )
        return
    for kind, kernel in kernels.items():
        yield from kernel_rows(probe, kernel, f"ntk_{kind}", n)
    full = kernels["full"].to(gradients.device)
    yield from _spectrum(probe, "ggn", F.ggn_spectrum(full, hessians / n), n)
    yield from _spectrum(probe, "fisher", F.fisher_spectrum(full, gradients), n)


def _loss_derivatives(probe: Probe, index: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (n, C) and Hessians (n, C, C) of each sample's own loss in its main output, float64."""
    first, second = [], []
    for i in index:
        inputs, targets = (pick(x, i[None], probe.samples) for x in (probe.batch.inputs, probe.batch.targets))
        outputs = call(probe.model, inputs, probe.forward)
        z = main_output(outputs)
        loss = run_loss(probe.loss_fn, outputs, targets)
        assert z is not None  # the whole probe had one
        (grad,) = torch.autograd.grad(loss, z, create_graph=True)
        width = grad.numel()
        if grad.grad_fn is None:  # linear in the outputs
            hessian = grad.new_zeros(width, width)
        else:
            eye = torch.eye(width, dtype=grad.dtype, device=grad.device).reshape(width, *grad.shape)
            (found,) = torch.autograd.grad(grad, z, eye, is_grads_batched=True, allow_unused=True)
            hessian = grad.new_zeros(width, width) if found is None else found.reshape(width, width)
        first.append(grad.detach().reshape(-1).double())
        second.append(hessian.detach().double())
    return torch.stack(first), torch.stack(second)


def _spectrum(probe: Probe, matrix: str, values: Tensor, n: int) -> Iterable[Record]:
    link = probe.keep(f"{matrix}_spectrum", None, values) if bool(values.isfinite().all()) else ""
    total = values.sum()
    fields = {"samples": n, "array": link}
    yield probe.record(f"{matrix}_max", values[0], **fields)
    yield probe.record(f"{matrix}_trace", total, **fields)
    if float(total) == 0:
        for name in ("effective_rank", "rank99"):
            yield probe.unmeasured(
                f"{matrix}_{name}", "the spectrum is zero: the loss is flat here", samples=n
            )
        return
    yield probe.record(f"{matrix}_effective_rank", F.effective_rank(values), **fields)
    yield probe.record(f"{matrix}_rank99", F.srank(values, 0.01), **fields)


def _hessian(probe: Probe, index: Tensor) -> Record:
    """Row of the top Hessian eigenvalue, by products on the loss of the given samples."""
    parameters = list({id(p): p for p in probe.parameters.values() if p.requires_grad}.values())
    n = len(index)
    inputs, targets = (pick(x, index, probe.samples) for x in (probe.batch.inputs, probe.batch.targets))
    try:
        with plain_eager(probe.model):
            loss = run_loss(probe.loss_fn, call(probe.model, inputs, probe.forward), targets)
            grads = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            live = [
                (p, g) for p, g in zip(parameters, grads, strict=True) if g is not None and g.requires_grad
            ]
            if not live:
                return probe.unmeasured("hessian_max", "the loss has no second derivative", samples=n)
            wanted, first = [p for p, _ in live], torch.cat([g.reshape(-1) for _, g in live])

            def product(v: Tensor) -> Tensor:
                found = torch.autograd.grad(first, wanted, v, retain_graph=True, allow_unused=True)
                pairs = zip(found, wanted, strict=True)
                return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])

            generator = torch.Generator().manual_seed(probe.seed)
            start = torch.randn(first.numel(), generator=generator).to(first.detach())
            found = F.largest_eigenvalue(product, start, HESSIAN_STEPS)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        return probe.unmeasured("hessian_max", f"no Hessian-vector product here: {error}", samples=n)
    value = float(found.value)
    error = float(found.error) / abs(value) if value else 0.0
    return probe.record("hessian_max", value, samples=n, error=error)
