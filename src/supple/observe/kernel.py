"""The empirical neural tangent kernel, exact, without a Jacobian where the layers allow it.

Shape letters: N samples, C outputs per sample, B cotangents at a time, T positions, I fan-in, O outputs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from supple.errors import InputError
from supple.observe.batch import all_finite
from supple.observe.guard import guard
from supple.observe.kernel_calls import Call, Recorder, settle_layouts
from supple.observe.kernel_graph import parameter_uses
from supple.observe.kernel_samples import add_by_samples
from supple.observe.kernel_sums import Kernel, add_block, blocks_of
from supple.topology import batch_size, call

KINDS = ("trace", "full", "scalar")
#: bytes of gradients held at a time
BUDGET = 2**29


def ntk(
    model: nn.Module,
    inputs: Any,
    kind: str = "trace",
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Tensor:
    """Empirical NTK of the trainable parameters: <d f_c(x_i) / d theta, d f_d(x_j) / d theta>.

    * ``"full"``: every pair of outputs, (N C, N C), row n C + c;
    * ``"trace"``: sum over c of the (c, c) blocks, (N, N);
    * ``"scalar"``: of the one output sum_c f_c / sqrt C, (N, N). Random signs in place of the ones would
      have the trace kernel as their mean; this choice is fixed.

    Exact, in eval mode. Linear, convolution (1-D, 2-D), embedding and normalisation layers contribute by
    hooks: for a Linear layer K += (A A^T + 1) * (G G^T), elsewhere position pairs or one layer's per-sample
    gradients, whichever needs fewer operations; a weight used several times gets its cross terms. Parameters
    used in any other way (bare parameters, packed attention, recurrent layers) go through per-sample
    gradients of the whole network restricted to them. Gradients have the dtype of the model, sums are
    float64. No object of the size of all parameters times N exists for a network of Linear layers.

    Samples must not influence one another (batch statistics do): this is tested with scaled cotangents,
    not assumed. Nothing of the model's state changes: buffers, flags, gradients, random state.

    Args:
        model: any module with parameters that require grad; outputs (N, ...), C outputs per sample.
        inputs: tensor, tuple (``model(*inputs)``) or mapping (``model(**inputs)``); samples on axis 0.
        kind: which kernel.
        forward: ``forward(model, inputs)`` -> tensor, where the call or the output needs a hand.

    Returns:
        float64, symmetric positive semi-definite, on the device of the outputs. NaN throughout where an
        output or a gradient is NaN or Inf. Squared output units; grows with the squared weight norms.

    Raises:
        InputError: an unknown kind, no sample, an output that is not a floating tensor (N, ...), no
            trainable parameter behind it, samples that are coupled, or reentrant checkpointing.

    >>> net = nn.Linear(2, 1)
    >>> ntk(net, torch.tensor([[1.0, 2.0], [3.0, 0.0]])).tolist()
    [[6.0, 4.0], [4.0, 10.0]]
    """
    if kind not in KINDS:
        raise InputError("unknown kind of kernel", found=kind, do=f"use one of {', '.join(KINDS)}")
    with guard(model, evaluate=True), plain_eager(model):
        with Recorder(model) as recorder:
            outputs = call(model, inputs, forward)
        outputs = _flat(outputs, inputs)
        kernel = Kernel(kind, *outputs.shape, device=outputs.device)
        if not all_finite(outputs):
            return kernel.unusable()
        uses, nodes = parameter_uses(outputs)
        _refuse_hidden_graphs(nodes)
        calls = [c for c in recorder.calls if c.output.grad_fn in nodes]
        if not _settle(calls, outputs):
            return kernel.unusable()
        blocks, rest = blocks_of(model, calls, uses)
        for group in _groups(blocks, kernel):
            _add_group(kernel, group, outputs)
        add_by_samples(kernel, model, inputs, forward, rest, BUDGET)
        return kernel.result()


def _add_group(kernel: Kernel, group: Sequence[Any], outputs: Tensor) -> None:
    """Pull the kernel's cotangents back to the layers of one group, as many at a time as fit."""
    calls = list({id(c): c for block in group for c in block.calls}.values())
    size = sum(c.output.numel() * c.output.element_size() for c in calls)
    chunk = kernel.cotangents if kernel.kind == "full" else max(1, BUDGET // max(1, size))
    for start in range(0, kernel.cotangents, chunk):
        v = kernel.cotangent(outputs, start, min(start + chunk, kernel.cotangents))
        grads = dict(zip(map(id, calls), pull(outputs, [c.output for c in calls], v), strict=True))
        for block in group:
            add_block(kernel, block, [grads[id(c)] for c in block.calls])


def _groups(blocks: Sequence[Any], kernel: Kernel) -> Iterator[list[Any]]:
    """Layers whose gradients for one backward pass fit the budget together; at least one at a time."""
    per_pass = kernel.cotangents if kernel.kind == "full" else 1
    group: list[Any] = []
    held = 0
    for block in blocks:
        size = per_pass * sum(c.output.numel() * c.output.element_size() for c in block.calls)
        if group and held + size > BUDGET:
            yield group
            group, held = [], 0
        group.append(block)
        held += size
    if group:
        yield group


def pull(outputs: Tensor, targets: Sequence[Tensor], cotangents: Tensor) -> list[Tensor]:
    """Gradients of <outputs, cotangents[b]> at each target: (B, *target.shape)."""
    if not targets:
        return []

    def one(v: Tensor) -> tuple[Tensor, ...]:
        # of <outputs, v> as a scalar: with v given as a cotangent torch imports sympy at the first call (0.7 s)
        return torch.autograd.grad(
            (outputs * v).sum(), targets, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    if len(cotangents) > 1:
        try:
            return [g.detach() for g in torch.func.vmap(one)(cotangents)]
        except RuntimeError:
            pass  # an operation whose backward cannot be batched: one at a time below, or its own error
    rows = [one(v) for v in cotangents]
    return [torch.stack([g.detach() for g in parts]) for parts in zip(*rows, strict=True)]


def _settle(calls: Sequence[Call], outputs: Tensor) -> bool:
    """Find where the sample axis of every call is; False where a gradient is not finite.

    Sample i's output is weighted by s_i: gradients that belong to sample i alone must scale by s_i. Powers
    of two, so that scaling is exact in floating point.
    """
    n = outputs.shape[0]
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    exponent = torch.arange(n) % 7 - 3
    sign = 1 - 2 * torch.randint(0, 2, (n,), generator=generator)
    scale = (2.0**exponent * sign).to(outputs)
    before, after = (pull(outputs, [c.output for c in calls], v[None]) for v in (base, base * scale[:, None]))
    if not all(all_finite(g) for g in before):
        return False
    settle_layouts(calls, before, after, scale)
    return True


def _refuse_hidden_graphs(nodes: Iterable[Any]) -> None:
    """Parameters inside reentrant checkpointing are on no graph: they would be left out without a word."""
    if any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes):
        raise InputError(
            "reentrant activation checkpointing hides parameters from the kernel",
            do="use checkpoint(..., use_reentrant=False)",
        )


def _flat(outputs: Any, inputs: Any) -> Tensor:
    """Outputs as (N, C); anything else is refused with what to do."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.dim() < 1:
        found = type(outputs).__name__ if not isinstance(outputs, Tensor) else str(outputs.dtype)
        raise InputError(
            "the kernel needs one floating-point tensor (samples, ...) as output",
            found=found,
            do="pass forward=lambda model, inputs: model(inputs).logits, or the like",
        )
    n = batch_size(inputs)
    if outputs.numel() == 0 or (n is not None and n != outputs.shape[0]):
        raise InputError(
            "the output does not have the samples on its first axis, or there are none",
            found=f"output {tuple(outputs.shape)} for {n} samples",
        )
    if not outputs.requires_grad:
        raise InputError("no parameter that requires grad lies behind the output", do="unfreeze a layer")
    return outputs.reshape(outputs.shape[0], -1)


@contextlib.contextmanager
def plain_eager(model: nn.Module) -> Iterator[None]:
    """Hooks fire (compiled models run eagerly), autocast rounds nothing, attention runs as plain products.

    Fused attention kernels have no batching rule, so that many cotangents at once would run one by one.
    """
    device = next((p.device.type for p in model.parameters()), "cpu")
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # importing it takes a second, and without it nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
